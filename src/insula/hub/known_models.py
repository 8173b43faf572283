"""Well-known open models, for a search without a network.

Every field is what the model's own card or config.json on the Hugging Face hub states, or absent:
a name here is a fact, never a guess. Parameters are rounded as the cards round them, so a file size
that follows from them is an estimate. `data` names what a card publishes about the training data;
empty means that nothing was published, or that it is not known here. `gguf` is a repository of GGUF
files by the model's makers or a publisher that many use; what is in it now, the hub says.
"""

from __future__ import annotations

from dataclasses import dataclass

#: Bits per weight that a Q4_K_M file of a model has on average. Rows of a width that is no multiple
#: of 256 cannot be in Q4_K and are in larger formats: measured on published files of such models.
BITS, BITS_ODD_WIDTH = 4.9, 6.4


@dataclass(frozen=True, kw_only=True)
class KnownModel:
    """`parameters` and `tokens` (seen in pretraining) as counts, `context` in tokens.

    shape: (layers, KV heads, head dimension, width), which decide what a context costs.
    """

    repo: str
    gguf: str
    arch: str
    parameters: float
    licence: str
    context: int
    shape: tuple[int, int, int, int]
    tokens: float | None = None
    data: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What `insula pull` takes."""
        return f"hf.co/{self.gguf}"

    @property
    def q4_bytes(self) -> int:
        """About how large a Q4_K_M file is."""
        bits = BITS if self.shape[3] % 256 == 0 else BITS_ODD_WIDTH
        return round(self.parameters * bits / 8)

    @property
    def kv_per_token(self) -> int:
        """Bytes of f16 keys and values per token, windowed layers counted as whole ones."""
        layers, heads, dim, _ = self.shape
        return layers * heads * dim * 2 * 2


def _rows(
    arch: str,
    licence: str,
    context: int,
    *rows: tuple[str, str, float, tuple[int, int, int, int], float | None],
    data: tuple[str, ...] = (),
) -> tuple[KnownModel, ...]:
    """A family: (repository, GGUF one, billions of parameters, shape, trillions of tokens)."""
    return tuple(
        KnownModel(
            repo=repo,
            gguf=gguf,
            arch=arch,
            licence=licence,
            context=context,
            parameters=parameters * 1e9,
            shape=shape,
            tokens=None if tokens is None else tokens * 1e12,
            data=data,
        )
        for repo, gguf, parameters, shape, tokens in rows
    )


_SMOLLM2 = ("FineWeb-Edu", "DCLM", "The Stack")
_OLMO2 = ("OLMo-mix-1124", "Dolmino-mix-1124")
_HF, _Q = "HuggingFaceTB/SmolLM2", "Qwen/Qwen"

KNOWN: tuple[KnownModel, ...] = (
    *_rows(
        *("llama", "Apache-2.0", 8192),
        (
            f"{_HF}-135M-Instruct",
            "bartowski/SmolLM2-135M-Instruct-GGUF",
            0.1345,
            (30, 3, 64, 576),
            2,
        ),
        (f"{_HF}-360M-Instruct", f"{_HF}-360M-Instruct-GGUF", 0.362, (32, 5, 64, 960), 4),
        (f"{_HF}-1.7B-Instruct", f"{_HF}-1.7B-Instruct-GGUF", 1.71, (24, 32, 64, 2048), 11),
        data=_SMOLLM2,
    ),
    *_rows(
        *("smollm3", "Apache-2.0", 65536),
        ("HuggingFaceTB/SmolLM3-3B", "ggml-org/SmolLM3-3B-GGUF", 3.08, (36, 4, 128, 2048), 11.2),
    ),
    *_rows(
        *("qwen2", "Apache-2.0", 32768),
        (f"{_Q}2.5-0.5B-Instruct", f"{_Q}2.5-0.5B-Instruct-GGUF", 0.49, (24, 2, 64, 896), 18),
        (f"{_Q}2.5-1.5B-Instruct", f"{_Q}2.5-1.5B-Instruct-GGUF", 1.54, (28, 2, 128, 1536), 18),
        (f"{_Q}2.5-7B-Instruct", f"{_Q}2.5-7B-Instruct-GGUF", 7.61, (28, 4, 128, 3584), 18),
        (f"{_Q}2.5-14B-Instruct", f"{_Q}2.5-14B-Instruct-GGUF", 14.7, (48, 8, 128, 5120), 18),
        (f"{_Q}2.5-32B-Instruct", f"{_Q}2.5-32B-Instruct-GGUF", 32.5, (64, 8, 128, 5120), 18),
    ),
    *_rows(
        *("qwen2", "Qwen Research License", 32768),
        (f"{_Q}2.5-3B-Instruct", f"{_Q}2.5-3B-Instruct-GGUF", 3.09, (36, 2, 128, 2048), 18),
    ),
    *_rows(
        *("qwen3", "Apache-2.0", 32768),
        (f"{_Q}3-0.6B", f"{_Q}3-0.6B-GGUF", 0.6, (28, 8, 128, 1024), 36),
        (f"{_Q}3-1.7B", f"{_Q}3-1.7B-GGUF", 1.7, (28, 8, 128, 2048), 36),
        (f"{_Q}3-4B", f"{_Q}3-4B-GGUF", 4.0, (36, 8, 128, 2560), 36),
        (f"{_Q}3-8B", f"{_Q}3-8B-GGUF", 8.2, (36, 8, 128, 4096), 36),
        (f"{_Q}3-14B", f"{_Q}3-14B-GGUF", 14.8, (40, 8, 128, 5120), 36),
        (f"{_Q}3-32B", f"{_Q}3-32B-GGUF", 32.8, (64, 8, 128, 5120), 36),
    ),
    *_rows(
        *("llama", "Llama 3.2 Community License", 131072),
        (
            "meta-llama/Llama-3.2-1B-Instruct",
            "bartowski/Llama-3.2-1B-Instruct-GGUF",
            *(1.23, (16, 8, 64, 2048), 9),
        ),
        (
            "meta-llama/Llama-3.2-3B-Instruct",
            "bartowski/Llama-3.2-3B-Instruct-GGUF",
            *(3.21, (28, 8, 128, 3072), 9),
        ),
    ),
    *_rows(
        *("llama", "Llama 3.1 Community License", 131072),
        (
            "meta-llama/Llama-3.1-8B-Instruct",
            "bartowski/Meta-Llama-3.1-8B-Instruct-GGUF",
            *(8.03, (32, 8, 128, 4096), 15),
        ),
    ),
    *_rows(
        *("gemma2", "Gemma Terms of Use", 8192),
        ("google/gemma-2-2b-it", "bartowski/gemma-2-2b-it-GGUF", 2.61, (26, 4, 256, 2304), 2),
        ("google/gemma-2-9b-it", "bartowski/gemma-2-9b-it-GGUF", 9.24, (42, 8, 256, 3584), 8),
    ),
    *_rows(
        *("gemma3", "Gemma Terms of Use", 32768),
        ("google/gemma-3-1b-it", "ggml-org/gemma-3-1b-it-GGUF", 1.0, (26, 1, 256, 1152), 2),
    ),
    *_rows(
        *("gemma3", "Gemma Terms of Use", 131072),
        ("google/gemma-3-4b-it", "ggml-org/gemma-3-4b-it-GGUF", 4.3, (34, 4, 256, 2560), 4),
        ("google/gemma-3-12b-it", "ggml-org/gemma-3-12b-it-GGUF", 12.2, (48, 8, 256, 3840), 12),
        ("google/gemma-3-27b-it", "ggml-org/gemma-3-27b-it-GGUF", 27.4, (62, 16, 128, 5376), 14),
    ),
    *_rows(
        *("phi3", "MIT", 4096),
        (
            "microsoft/Phi-3-mini-4k-instruct",
            "microsoft/Phi-3-mini-4k-instruct-gguf",
            *(3.82, (32, 32, 96, 3072), None),
        ),
    ),
    *_rows(
        *("phi3", "MIT", 16384),
        ("microsoft/phi-4", "microsoft/phi-4-gguf", 14.7, (40, 10, 128, 5120), 9.8),
    ),
    *_rows(
        *("olmo2", "Apache-2.0", 4096),
        (
            "allenai/OLMo-2-0425-1B-Instruct",
            "allenai/OLMo-2-0425-1B-Instruct-GGUF",
            *(1.48, (16, 16, 128, 2048), 4),
        ),
        (
            "allenai/OLMo-2-1124-7B-Instruct",
            "allenai/OLMo-2-1124-7B-Instruct-GGUF",
            *(7.3, (32, 32, 128, 4096), 4),
        ),
        (
            "allenai/OLMo-2-1124-13B-Instruct",
            "allenai/OLMo-2-1124-13B-Instruct-GGUF",
            *(13.7, (40, 40, 128, 5120), 5),
        ),
        data=_OLMO2,
    ),
    *_rows(
        *("llama", "Apache-2.0", 32768),
        (
            "mistralai/Mistral-7B-Instruct-v0.3",
            "bartowski/Mistral-7B-Instruct-v0.3-GGUF",
            *(7.25, (32, 8, 128, 4096), None),
        ),
    ),
    *_rows(
        *("llama", "Apache-2.0", 131072),
        (
            "mistralai/Mistral-Nemo-Instruct-2407",
            "bartowski/Mistral-Nemo-Instruct-2407-GGUF",
            *(12.2, (40, 8, 128, 5120), None),
        ),
    ),
    *_rows(
        *("granite", "Apache-2.0", 131072),
        (
            "ibm-granite/granite-3.3-2b-instruct",
            "ibm-granite/granite-3.3-2b-instruct-GGUF",
            *(2.53, (40, 8, 64, 2048), None),
        ),
        (
            "ibm-granite/granite-3.3-8b-instruct",
            "ibm-granite/granite-3.3-8b-instruct-GGUF",
            *(8.17, (40, 8, 128, 4096), None),
        ),
    ),
    *_rows(
        *("llama", "Apache-2.0", 2048),
        (
            "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
            "TheBloke/TinyLlama-1.1B-Chat-v1.0-GGUF",
            *(1.1, (22, 4, 64, 2048), 3),
        ),
        data=("SlimPajama", "Starcoderdata"),
    ),
    *_rows(
        *("qwen2", "MIT", 131072),
        (
            "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B",
            "bartowski/DeepSeek-R1-Distill-Qwen-1.5B-GGUF",
            *(1.78, (28, 2, 128, 1536), None),
        ),
        (
            "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B",
            "bartowski/DeepSeek-R1-Distill-Qwen-7B-GGUF",
            *(7.62, (28, 4, 128, 3584), None),
        ),
    ),
)


def find(words: str) -> list[KnownModel]:
    """The models whose name, licence or training data holds every word; all of them for none."""
    wanted = words.lower().split()
    return [
        model
        for model in KNOWN
        if all(
            word in " ".join((model.name, model.repo, model.licence, *model.data)).lower()
            for word in wanted
        )
    ]
