// insula._native: sampling. Checks shapes, lets go of the interpreter lock, reports a status code
// (the Python side words the errors). Values are validated by insula.engine.sampling.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <optional>
#include <stdexcept>

#include "../runtime/sampling.h"

namespace nb = nanobind;
using insula::SampleStatus;
using insula::SamplingConfig;
using insula::SamplingInput;

namespace {

using Logits = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Tokens = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Mask = nb::ndarray<const uint32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

insula::SamplerKind kind_of(const std::string &name) {
  if (name == "penalties")
    return insula::SamplerKind::penalties;
  if (name == "dry")
    return insula::SamplerKind::dry;
  if (name == "top_n_sigma")
    return insula::SamplerKind::top_n_sigma;
  if (name == "top_k")
    return insula::SamplerKind::top_k;
  if (name == "typical_p")
    return insula::SamplerKind::typical_p;
  if (name == "top_p")
    return insula::SamplerKind::top_p;
  if (name == "min_p")
    return insula::SamplerKind::min_p;
  if (name == "xtc")
    return insula::SamplerKind::xtc;
  if (name == "temperature")
    return insula::SamplerKind::temperature;
  throw std::invalid_argument("unknown sampler: " + name);
}

SamplingInput input_of(const Logits &logits, const Tokens &history, uint64_t position,
                       uint64_t seed, double mirostat_mu, const std::optional<Mask> &allowed) {
  SamplingInput input;
  input.logits = logits.data();
  input.n_vocab = logits.size();
  input.history = history.data();
  input.n_history = history.size();
  input.position = position;
  input.seed = seed;
  input.mirostat_mu = mirostat_mu;
  if (allowed) {
    if (allowed->size() < (input.n_vocab + 31) / 32)
      throw std::invalid_argument("the token mask is shorter than the vocabulary");
    input.allowed = allowed->data();
  }
  return input;
}

nb::list top_list(const std::vector<insula::TokenScore> &top) {
  nb::list result;
  for (const auto &entry : top)
    result.append(nb::make_tuple(entry.id, entry.logprob));
  return result;
}

} // namespace

void bind_sampling(nb::module_ &m) {
  nb::class_<SamplingConfig>(m, "Sampler", "One request's way of choosing tokens, validated.")
      .def(
          "__init__",
          [](SamplingConfig *self, double temperature, int64_t top_k, double top_p, double min_p,
             double typical_p, double repeat_penalty, double presence_penalty,
             double frequency_penalty, int64_t repeat_last_n, double dry_multiplier,
             double dry_base, int64_t dry_allowed_length, int64_t dry_penalty_last_n,
             std::vector<std::vector<int32_t>> dry_breakers, double top_n_sigma,
             double xtc_probability, double xtc_threshold, double dynatemp_range,
             double dynatemp_exponent, int mirostat, double mirostat_tau, double mirostat_eta,
             std::vector<std::pair<int32_t, float>> logit_bias,
             const std::vector<std::string> &samplers) {
            SamplingConfig config;
            config.temperature = temperature;
            config.top_k = top_k;
            config.top_p = top_p;
            config.min_p = min_p;
            config.typical_p = typical_p;
            config.repeat_penalty = repeat_penalty;
            config.presence_penalty = presence_penalty;
            config.frequency_penalty = frequency_penalty;
            config.repeat_last_n = repeat_last_n;
            config.dry.multiplier = dry_multiplier;
            config.dry.base = dry_base;
            config.dry.allowed_length = dry_allowed_length;
            config.dry.last_n = dry_penalty_last_n;
            for (auto &ids : dry_breakers) {
              if (ids.empty() || *std::min_element(ids.begin(), ids.end()) < 0)
                throw std::invalid_argument("a sequence breaker is one or more token ids");
              config.dry.breakers.add(std::move(ids));
            }
            config.top_n_sigma = top_n_sigma;
            config.xtc_probability = xtc_probability;
            config.xtc_threshold = xtc_threshold;
            config.dynatemp_range = dynatemp_range;
            config.dynatemp_exponent = dynatemp_exponent;
            config.mirostat = mirostat;
            config.mirostat_tau = mirostat_tau;
            config.mirostat_eta = mirostat_eta;
            config.logit_bias = std::move(logit_bias);
            for (const std::string &name : samplers)
              config.order.push_back(kind_of(name));
            new (self) SamplingConfig(std::move(config));
          },
          nb::kw_only(), nb::arg("temperature"), nb::arg("top_k"), nb::arg("top_p"),
          nb::arg("min_p"), nb::arg("typical_p"), nb::arg("repeat_penalty"),
          nb::arg("presence_penalty"), nb::arg("frequency_penalty"), nb::arg("repeat_last_n"),
          nb::arg("dry_multiplier"), nb::arg("dry_base"), nb::arg("dry_allowed_length"),
          nb::arg("dry_penalty_last_n"), nb::arg("dry_breakers"), nb::arg("top_n_sigma"),
          nb::arg("xtc_probability"), nb::arg("xtc_threshold"), nb::arg("dynatemp_range"),
          nb::arg("dynatemp_exponent"), nb::arg("mirostat"), nb::arg("mirostat_tau"),
          nb::arg("mirostat_eta"), nb::arg("logit_bias"), nb::arg("samplers"))
      .def(
          "sample",
          [](const SamplingConfig &self, Logits logits, Tokens history, uint64_t position,
             uint64_t seed, double mirostat_mu, std::optional<Mask> allowed, int64_t logprobs) {
            const SamplingInput input =
                input_of(logits, history, position, seed, mirostat_mu, allowed);
            int32_t token = -1;
            float logprob = 0.0f;
            std::vector<insula::TokenScore> top;
            SampleStatus status;
            {
              nb::gil_scoped_release release;
              status = insula::sample(self, input, &token, &mirostat_mu);
              if (status == SampleStatus::ok && logprobs >= 0)
                status = insula::log_probabilities(input.logits, input.n_vocab, token,
                                                   static_cast<size_t>(logprobs), &logprob, &top);
            }
            return nb::make_tuple(static_cast<int>(status), token, mirostat_mu, logprob,
                                  top_list(top));
          },
          nb::arg("logits"), nb::arg("history"), nb::arg("position"), nb::arg("seed"),
          nb::arg("mirostat_mu"), nb::arg("allowed").none(), nb::arg("logprobs"),
          "-> (status, token, next mirostat_mu, logprob, [(id, logprob)]); logprobs < 0 leaves the "
          "last two out.")
      .def(
          "distribution",
          [](const SamplingConfig &self, Logits logits, Tokens history, uint64_t position,
             uint64_t seed, double mirostat_mu, std::optional<Mask> allowed) {
            const SamplingInput input =
                input_of(logits, history, position, seed, mirostat_mu, allowed);
            auto *ids = new std::vector<int32_t>;
            auto *probabilities = new std::vector<double>;
            nb::capsule own_ids(
                ids, [](void *p) noexcept { delete static_cast<std::vector<int32_t> *>(p); });
            nb::capsule own_probabilities(probabilities, [](void *p) noexcept {
              delete static_cast<std::vector<double> *>(p);
            });
            const SampleStatus status = insula::distribution(self, input, ids, probabilities);
            return nb::make_tuple(
                static_cast<int>(status),
                nb::ndarray<nb::numpy, int32_t, nb::ndim<1>>(ids->data(), {ids->size()}, own_ids),
                nb::ndarray<nb::numpy, double, nb::ndim<1>>(
                    probabilities->data(), {probabilities->size()}, own_probabilities));
          },
          nb::arg("logits"), nb::arg("history"), nb::arg("position"), nb::arg("seed"),
          nb::arg("mirostat_mu"), nb::arg("allowed").none(),
          "-> (status, ids int32[n] ascending, probabilities float64[n]).");

  m.def(
      "log_probabilities",
      [](Logits logits, int32_t token, size_t n_top) {
        float logprob = 0.0f;
        std::vector<insula::TokenScore> top;
        SampleStatus status;
        {
          nb::gil_scoped_release release;
          status =
              insula::log_probabilities(logits.data(), logits.size(), token, n_top, &logprob, &top);
        }
        return nb::make_tuple(static_cast<int>(status), logprob, top_list(top));
      },
      nb::arg("logits"), nb::arg("token"), nb::arg("n_top"),
      "-> (status, logprob, [(id, logprob)]) under the raw logits.");

  m.def(
      "philox4x32",
      [](const std::vector<uint32_t> &counter, const std::vector<uint32_t> &key) {
        if (counter.size() != 4 || key.size() != 2)
          throw std::invalid_argument("philox4x32 takes 4 counter words and 2 key words");
        const auto word =
            insula::philox4x32({counter[0], counter[1], counter[2], counter[3]}, {key[0], key[1]});
        return nb::make_tuple(word[0], word[1], word[2], word[3]);
      },
      nb::arg("counter"), nb::arg("key"), "Philox4x32-10.");
  m.def(
      "uniform_at",
      [](uint64_t seed, uint64_t position, uint32_t stream) {
        return insula::uniform_at(seed, position, static_cast<insula::Stream>(stream));
      },
      nb::arg("seed"), nb::arg("position"), nb::arg("stream") = 0,
      "The uniform in [0, 1) that belongs to a position and a stream (0: the token, 1: XTC).");
}
