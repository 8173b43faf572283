// Choosing the next token from one row of logits.
//
// Owns: the samplers, their order, the counter-based generator, log-probabilities. Knows nothing
// of Python, sequences or threads: a call reads its arguments and per-thread scratch, and nothing
// else, so the same arguments give the same token on every machine. To that end exp and log are
// written out here (libraries differ in the last bit), every sum has a fixed order, and no result
// depends on how a library's selection or sort orders equal elements: the order "higher logit
// first, then lower id" is total. docs/sampling.md has the definitions and
// ops/reference_sampling.py says the same in NumPy.
#pragma once

#include "sampling_dry.h"

#include <array>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace insula {

enum class SamplerKind : uint8_t {
  penalties,
  dry,
  top_n_sigma,
  top_k,
  typical_p,
  top_p,
  min_p,
  xtc,
  temperature
};

enum class SampleStatus : int {
  ok = 0,
  not_a_number = 1,    // a raw logit is NaN or +inf
  nothing_left = 2,    // no allowed token has a finite logit
  token_outside = 3,   // a bias names an id >= n_vocab
  history_outside = 4, // the history holds an id outside [0, n_vocab)
};

// Values are checked before they get here (insula.engine.sampling.validate).
struct SamplingConfig {
  double temperature = 0.8; // <= 0: greedy
  int64_t top_k = 40;       // <= 0: off
  double top_p = 0.95;      // >= 1: off
  double min_p = 0.05;      // <= 0: off
  double typical_p = 1.0;   // >= 1: off
  double repeat_penalty = 1.0;
  double presence_penalty = 0.0;
  double frequency_penalty = 0.0;
  int64_t repeat_last_n = 64; // 0: none, -1: all
  DrySettings dry;
  double top_n_sigma = -1.0;    // <= 0: off
  double xtc_probability = 0.0; // <= 0: off
  double xtc_threshold = 0.1;   // > 0.5: off
  double dynatemp_range = 0.0;  // <= 0: off
  double dynatemp_exponent = 1.0;
  int mirostat = 0; // 0 or 2; 2 acts in place of all samplers that only leave tokens out
  double mirostat_tau = 5.0;
  double mirostat_eta = 0.1;
  std::vector<std::pair<int32_t, float>> logit_bias;
  std::vector<SamplerKind> order;
};

struct TokenScore {
  int32_t id;
  float logprob;
};

// One row, and what of the request's state the samplers see.
struct SamplingInput {
  const float *logits = nullptr; // [n_vocab]
  size_t n_vocab = 0;
  const int32_t *history = nullptr; // every token so far, oldest first
  size_t n_history = 0;
  const uint32_t *allowed = nullptr; // [ceil(n_vocab / 32)], bit id % 32 of word id / 32; or null
  uint64_t position = 0;             // of the token to be chosen
  uint64_t seed = 0;
  double mirostat_mu = 0.0; // bits of surprise; the request's state, 2 * tau at its start
};

// Philox4x32-10 (Salmon et al., SC 2011).
std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key);

// What a position needs chance for. Each has a uniform of its own, so that none shifts another.
enum class Stream : uint32_t { token = 0, xtc = 1 };

// The one uniform of a position and a stream, in [0, 1) with 53 bits.
double uniform_at(uint64_t seed, uint64_t position, Stream stream = Stream::token);

// mirostat_mu: what the next token's input is to hold; as it was where mirostat is off.
SampleStatus sample(const SamplingConfig &config, const SamplingInput &input, int32_t *token,
                    double *mirostat_mu);

// The distribution that `sample` draws from: ids ascending, probabilities that sum to 1.
SampleStatus distribution(const SamplingConfig &config, const SamplingInput &input,
                          std::vector<int32_t> *ids, std::vector<double> *probabilities);

// Natural-log probabilities under the raw logits: of `token`, and of the n_top likeliest
// (ties: lower id first). n_top is cut to the number of tokens with a finite logit.
SampleStatus log_probabilities(const float *logits, size_t n_vocab, int32_t token, size_t n_top,
                               float *token_logprob, std::vector<TokenScore> *top);

} // namespace insula
