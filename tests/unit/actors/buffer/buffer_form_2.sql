BEGIN TRANSACTION;
CREATE TABLE history (                 -- solutions by the policy version that wrote them
    task_id INTEGER NOT NULL,
    version INTEGER NOT NULL,
    attempts INTEGER NOT NULL,
    solved INTEGER NOT NULL,
    PRIMARY KEY (task_id, version)
) STRICT, WITHOUT ROWID;
INSERT INTO "history" VALUES(3,5,8,8);
INSERT INTO "history" VALUES(5,5,4,1);
CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;
INSERT INTO "meta" VALUES('settled_attempts',16);
CREATE TABLE task_references (         -- what the proposer of a task was shown
    task_id INTEGER NOT NULL,
    reference_id INTEGER NOT NULL,
    PRIMARY KEY (task_id, reference_id)
) STRICT, WITHOUT ROWID;
INSERT INTO "task_references" VALUES(3,1);
INSERT INTO "task_references" VALUES(4,2);
INSERT INTO "task_references" VALUES(5,3);
CREATE TABLE tasks (
    id INTEGER PRIMARY KEY,            -- in the order of entry
    kind TEXT NOT NULL,
    digest BLOB NOT NULL UNIQUE,       -- of kind, normalised program, inputs; for induction, of the message too
    program_digest BLOB NOT NULL,      -- of the normalised program: equal where programs differ in names and layout only
    program TEXT NOT NULL,
    inputs TEXT NOT NULL,              -- JSON array of canonical literals
    outputs TEXT NOT NULL,             -- JSON array of canonical literals
    message TEXT NOT NULL,
    proposer_version INTEGER NOT NULL, -- oldest policy version in the proposal's tokens; -1: given, not proposed
    episode_id TEXT NOT NULL,
    created REAL NOT NULL,             -- seconds since the epoch
    reward REAL,                       -- the proposer's; null where none was given
    attempts INTEGER NOT NULL DEFAULT 0,
    solved INTEGER NOT NULL DEFAULT 0,
    last_solved_version INTEGER,       -- newest policy version that solved it; null: none has
    active INTEGER NOT NULL DEFAULT 1, -- 0: it has left the draw
    settled INTEGER NOT NULL DEFAULT 0 -- 1: solved always or never, in enough attempts
) STRICT;
INSERT INTO "tasks" VALUES(1,'deduction',X'FF0A3A53A7168FEAA5D11DF6B79CE8F4',X'D7AE62F15500D9E2F7FA55FD75804C21','def f(x):
    return x','["''Hello World''"]','["''Hello World''"]','',-1,'zero',0.0,NULL,0,0,NULL,1,0);
INSERT INTO "tasks" VALUES(2,'abduction',X'599695DE1E43C25A99ADE64D16F6ABED',X'D7AE62F15500D9E2F7FA55FD75804C21','def f(x):
    return x','["''Hello World''"]','["''Hello World''"]','',-1,'zero',0.0,NULL,0,0,NULL,1,0);
INSERT INTO "tasks" VALUES(3,'deduction',X'3C737406DE88F63903BF85EB268122F7',X'F5A481A46208043BD11D2436DDE0A9E5','def f(x):
    return x * 2','["2"]','["4"]','',3,'1.0',0.0,0.5,8,8,5,1,0);
INSERT INTO "tasks" VALUES(4,'abduction',X'380B8C3A4E96380B60F3F675A7B033E8',X'F5A481A46208043BD11D2436DDE0A9E5','def f(x):
    return x * 2','["''\u00e9''"]','["''\u00e9\u00e9''"]','',3,'2.0',0.0,NULL,0,0,NULL,1,0);
INSERT INTO "tasks" VALUES(5,'induction',X'835C15440642BDD5D05EB708513192C0',X'F5A481A46208043BD11D2436DDE0A9E5','def f(x):
    return x * 2','["1", "2"]','["2", "4"]','doubles',4,'3.0',0.0,NULL,4,1,5,1,0);
INSERT INTO "tasks" VALUES(6,'induction',X'AC50FEA37A7814B50DB3E4A29BA967C2',X'F5A481A46208043BD11D2436DDE0A9E5','def f(x):
    return x * 2','["1", "2"]','["2", "4"]','',4,'4.0',0.0,NULL,0,0,NULL,1,0);
CREATE INDEX tasks_active ON tasks (kind, active) WHERE active = 1;
CREATE INDEX tasks_settled ON tasks (kind, active, settled) WHERE active = 1 AND settled = 1;
COMMIT;
PRAGMA user_version = 2;
