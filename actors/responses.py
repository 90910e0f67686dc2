"""Right responses as text: what follows a prompt of self-play where the answer is known."""

from __future__ import annotations

from actors.prompt_builder import Prompt
from actors.prompts import FUNCTION_START, PromptFormat


def response_to(prompt: Prompt, answer: str, prompt_format: PromptFormat, thought: str = "") -> str | None:
    """The response to `prompt` that gives `answer`, whole blocks (`TaskKind.answer_reply`, `proposal_reply`).

    It begins where the prompt's own start of a reply ends, and ends with the stop string that would end it. `thought`:
    the reasoning, in `r1`. None where the format cannot say it: a reply that cannot begin so, such as a program that
    begins with an import, or one that a stop string would end too early, such as an answer with a fence in it.
    """
    if prompt_format == "r1":
        reply = f"{prompt.reply_start}{thought}</think>\n<answer>\n{answer}</answer>"
    elif "\n```" in prompt.stop:
        reply = answer.rstrip("\n")
    else:  # a proposer's reply ends where the next block or example would begin
        reply = f"{answer}{prompt.stop[-1]}" if prompt.reply_start == FUNCTION_START else f"{answer}\n{prompt.stop[-1]}"
    response = reply.removeprefix(prompt.reply_start)
    stopped = min(at for stop in prompt.stop if (at := response.find(stop)) >= 0)
    fits = reply.startswith(prompt.reply_start) and response[stopped:] in prompt.stop
    return response if fits else None
