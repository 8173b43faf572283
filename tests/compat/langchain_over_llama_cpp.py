"""langchain-community's two wrappers over llama-cpp-python, run over ours instead.

    python tests/compat/langchain_over_llama_cpp.py MODEL.gguf

The wrappers import `llama_cpp`; here that name is ours. Prints what they gave, as JSON.
"""

from __future__ import annotations

import json
import sys
import warnings

import insula.compat.llama_cpp

sys.modules["llama_cpp"] = insula.compat.llama_cpp
warnings.simplefilter("ignore")

from langchain_community.chat_models import ChatLlamaCpp  # noqa: E402
from langchain_community.embeddings import LlamaCppEmbeddings  # noqa: E402
from langchain_community.llms import LlamaCpp  # noqa: E402

path = sys.argv[1]
options = {"model_path": path, "n_ctx": 256, "temperature": 0.0, "max_tokens": 12, "verbose": False}
found: dict[str, object] = {}

llm = LlamaCpp(**options)
found["invoke"] = llm.invoke("the quick brown")
found["stream"] = list(llm.stream("the quick brown"))
found["tokens"] = llm.get_num_tokens("the quick brown")
found["stop"] = llm.invoke("the quick brown", stop=[str(found["invoke"])[3:5]])

chat = ChatLlamaCpp(**options)
answer = chat.invoke([("system", "Be brief."), ("human", "hello there")])
found["chat"] = answer.content
found["finish"] = answer.response_metadata["finish_reason"]
chunks = list(chat.stream([("system", "Be brief."), ("human", "hello there")]))
found["chat stream"] = "".join(str(chunk.content) for chunk in chunks)

found["grammar"] = LlamaCpp(**options, grammar="root ::= [0-9]+").invoke("the quick brown")
try:
    LlamaCppEmbeddings(model_path=path, n_ctx=256, verbose=False).embed_query("hello")
except ValueError as error:
    found["embeddings"] = str(error)
print(json.dumps(found))
