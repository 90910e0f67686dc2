"""The stream: trajectories from actors to the learner over ZeroMQ, and grants and weights' control the other way.

The learner is the server (ROUTER, `learner/stream/server.py`); an actor is a client (DEALER,
`learner/stream/client.py`). Every message and its fields: `learner/stream/wire.py`. Nothing is pickled.

    actor -> learner   hello   beat   trajectory   returned   failed   loaded   load_failed
    learner -> actor   welcome   who   ack   refused   beat   grant   cancel   manifest   join   weights
                       pause   resume   measure   shutdown

Nothing is lost, and nothing counts twice:

  S1  Credits. An actor starts a rollout only with a granted slot. So what it holds is bounded by its credits, and what
      waits at the learner by the gate.
  S2  What an actor sends (but for greetings and beats) has a `seq`; it keeps the message until `ack`, and sends it
      again after a reconnect or when it takes too long. The learner removes duplicates by (actor, incarnation, seq).
  S3  What the learner says about slots and weights is numbered within a `session`, taken in order, and kept until the
      actor's beat or hello says `taken`; it is sent again until then. An actor that is heard but takes nothing is lost,
      with that reason.
  S4  A connection that breaks is made anew by ZeroMQ; the actor greets the learner again when it does not hear it.
  S5  A learner that restarts on the same endpoint does not know its actors and asks `who`. Their hello says which slots
      they hold. What the gate has in flight there and the actor has not is dropped and granted anew; what the actor has
      and the gate does not know is cancelled (`Gate.reclaim`). An actor that does not come back is lost after a
      deadline.
  S6  Silence has a name. Beats go both ways. A silent actor is lost; of a silent learner the actor says so, and at a
      deadline it gives up (`LearnerLost`).
  S7  Whatever is malformed is refused and counted by reason. It never ends or holds up the server, and changes nothing.
  S8  With keys (`learner/stream/keys.py`), a peer that has none of this run's gets nothing, not even a refusal.
"""
