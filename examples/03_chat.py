"""A conversation: one answer, and a session whose history stays in the cache.

python examples/03_chat.py [MODEL]
"""

import sys

from insula import LLM

with LLM(sys.argv[1] if len(sys.argv) > 1 else "smollm2:135m", download=True) as llm:
    messages = [
        {"role": "system", "content": "You answer in one short sentence."},
        {"role": "user", "content": "Why is the sky blue?"},
    ]
    print(llm.chat(messages, max_tokens=40, temperature=0).text)

    # A session keeps its history; a turn costs its new tokens alone.
    with llm.chat_session(max_tokens=32, temperature=0, overflow="drop_oldest") as session:
        for question in ("My name is Sancho.", "I govern an island.", "What do I govern?"):
            answer = session.send(question)
            report = answer.report
            print(f"> {question}\n{answer.text}")
            print(f"[{report.cached_tokens} of {report.prompt_tokens} tokens were cached]")
