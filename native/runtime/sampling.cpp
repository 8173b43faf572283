#include "sampling.h"

#include "sampling_row.h"

namespace insula {

using namespace sampling;

namespace {

// One choice under way. The candidates are either the whole row (`dense`) or a list; temperature
// is a factor that is carried along, not multiplied in, so that logits of any size stay finite.
class Choice {
public:
  SampleStatus run(const SamplingConfig &config, const SamplingInput &input) {
    config_ = &config;
    input_ = &input;
    scale_ = 1.0;
    dense_ = true;
    if (input.n_vocab == 0)
      return SampleStatus::nothing_left;
    if (!row_.scan(input.logits, input.n_vocab))
      return SampleStatus::not_a_number;
    const bool greedy = config.temperature <= 0.0;
    if (auto status = bias_and_mask(); status != SampleStatus::ok)
      return status;
    if (!(row_.highest > kNever))
      return SampleStatus::nothing_left;
    const bool mirostat_acts = config.mirostat == 2 && !greedy;
    for (SamplerKind kind : config.order) {
      const bool penalizes = kind == SamplerKind::penalties || kind == SamplerKind::dry;
      if (greedy && !penalizes)
        continue;
      if (mirostat_acts && !penalizes && kind != SamplerKind::temperature)
        continue;
      if (auto status = apply(kind); status != SampleStatus::ok)
        return status;
    }
    if (mirostat_acts)
      mirostat(input.mirostat_mu);
    return SampleStatus::ok;
  }

  int32_t best() {
    if (dense_)
      return row_.argmax();
    return std::min_element(list_.begin(), list_.end(), higher)->id;
  }

  // Weights of the remaining candidates in the order of their ids; returns the sum.
  double weigh() {
    if (dense_) {
      weights_.resize(row_.n);
      return sum_exp(row_.x, row_.n, row_.highest, scale_, weights_.data());
    }
    std::sort(list_.begin(), list_.end(), lower_id);
    return weigh_list();
  }

  struct Drawn {
    int32_t id;
    double surprise; // -ln of its probability
  };

  Drawn draw(double u) {
    const double total = weigh();
    const double target = u * total;
    double cumulative = 0.0;
    size_t last = 0;
    for (size_t i = 0; i < weights_.size(); ++i) {
      if (weights_[i] == 0.0)
        continue;
      cumulative += weights_[i];
      last = i;
      if (cumulative > target)
        break;
    } // past the end only by rounding: the last candidate with any weight
    double surprise = 0.0;
    if (config_->mirostat == 2) {
      const auto [value, highest] = dense_ ? std::pair(row_.x[last], row_.highest)
                                           : std::pair(list_[last].logit, highest_listed());
      surprise = log_positive(total) -
                 (static_cast<double>(value) - static_cast<double>(highest)) * scale_;
    }
    return {id_at(last), surprise};
  }

  size_t size() const { return weights_.size(); }
  double weight(size_t i) const { return weights_[i]; }
  int32_t id_at(size_t i) const { return dense_ ? static_cast<int32_t>(i) : list_[i].id; }
  bool alive(size_t i) const { return !dense_ || row_.x[i] > kNever; }

private:
  void own_the_row() {
    if (row_.x == copy_.data() && !copy_.empty())
      return;
    copy_.assign(row_.x, row_.x + row_.n);
    row_.x = copy_.data();
  }

  SampleStatus bias_and_mask() {
    if (!config_->logit_bias.empty()) {
      own_the_row();
      for (const auto &[id, value] : config_->logit_bias) {
        if (id < 0 || static_cast<size_t>(id) >= row_.n)
          return SampleStatus::token_outside;
        if (copy_[id] > kNever)
          copy_[id] = saturate(static_cast<double>(copy_[id]) + static_cast<double>(value));
      }
    }
    if (input_->allowed) {
      own_the_row();
      for (size_t i = 0; i < row_.n; i += 32) {
        const uint32_t word = input_->allowed[i / 32];
        if (word == 0xFFFFFFFFu)
          continue;
        const size_t end = std::min(row_.n, i + 32);
        for (size_t j = i; j < end; ++j)
          copy_[j] = (word >> (j - i)) & 1u ? copy_[j] : kNever;
      }
    }
    if (row_.x == copy_.data())
      row_.scan(copy_.data(), row_.n);
    return SampleStatus::ok;
  }

  SampleStatus apply(SamplerKind kind) {
    const SamplingConfig &c = *config_;
    switch (kind) {
    case SamplerKind::penalties:
      return penalize();
    case SamplerKind::dry:
      return dry();
    case SamplerKind::top_n_sigma:
      if (c.top_n_sigma > 0.0)
        top_n_sigma(c.top_n_sigma);
      break;
    case SamplerKind::top_k:
      if (c.top_k > 0)
        top_k(static_cast<uint64_t>(c.top_k));
      break;
    case SamplerKind::typical_p:
      if (c.typical_p < 1.0)
        typical_p(c.typical_p);
      break;
    case SamplerKind::top_p:
      if (c.top_p < 1.0)
        top_p(c.top_p);
      break;
    case SamplerKind::min_p:
      if (c.min_p > 0.0)
        min_p(c.min_p);
      break;
    case SamplerKind::xtc:
      if (c.xtc_probability > 0.0 && c.xtc_threshold <= 0.5 &&
          uniform_at(input_->seed, input_->position, Stream::xtc) < c.xtc_probability)
        exclude_top_choices(c.xtc_threshold);
      break;
    case SamplerKind::temperature: {
      const double t = c.dynatemp_range > 0.0 ? dynamic_temperature() : c.temperature;
      scale_ = 1.0 / std::max(t, std::numeric_limits<double>::min()); // finite: 0 * scale is 0
      break;
    }
    }
    return SampleStatus::ok;
  }

  // A penalty acts on logit / temperature if temperature came first. What is stored is the logit
  // before that division, so the subtracted part is divided by the scale instead.
  float penalized(float logit, int32_t count) const {
    double v = logit;
    v = v <= 0.0 ? v * config_->repeat_penalty : v / config_->repeat_penalty;
    v -= (count * config_->frequency_penalty + config_->presence_penalty) / scale_;
    return saturate(v);
  }

  SampleStatus penalize() {
    const SamplingConfig &c = *config_;
    size_t window = input_->n_history;
    if (c.repeat_last_n >= 0)
      window = std::min(window, static_cast<size_t>(c.repeat_last_n));
    const bool off =
        c.repeat_penalty == 1.0 && c.presence_penalty == 0.0 && c.frequency_penalty == 0.0;
    if (off || window == 0)
      return SampleStatus::ok;
    const int32_t *recent = input_->history + (input_->n_history - window);
    for (size_t i = 0; i < window; ++i)
      if (recent[i] < 0 || static_cast<size_t>(recent[i]) >= row_.n)
        return SampleStatus::history_outside;
    if (counts_.size() < row_.n)
      counts_.resize(row_.n, 0);
    for (size_t i = 0; i < window; ++i)
      ++counts_[recent[i]];
    if (dense_) {
      own_the_row();
      for (size_t i = 0; i < window; ++i) {
        const int32_t id = recent[i];
        if (counts_[id] && copy_[id] > kNever)
          copy_[id] = penalized(copy_[id], counts_[id]);
        counts_[id] = 0;
      }
      row_.scan(copy_.data(), row_.n);
    } else {
      for (Candidate &candidate : list_)
        if (const int32_t count = counts_[candidate.id])
          candidate.logit = penalized(candidate.logit, count);
      for (size_t i = 0; i < window; ++i)
        counts_[recent[i]] = 0;
      std::sort(list_.begin(), list_.end(), higher);
    }
    return SampleStatus::ok;
  }

  SampleStatus dry() {
    const DrySettings &c = config_->dry;
    size_t window = input_->n_history;
    if (c.last_n >= 0)
      window = std::min(window, static_cast<size_t>(c.last_n));
    if (!(c.multiplier > 0.0) || window == 0)
      return SampleStatus::ok;
    const int32_t *recent = input_->history + (input_->n_history - window);
    for (size_t i = 0; i < window; ++i)
      if (recent[i] < 0 || static_cast<size_t>(recent[i]) >= row_.n)
        return SampleStatus::history_outside;
    repetitions_.find(c, recent, window);
    if (repetitions_.found().empty())
      return SampleStatus::ok;
    if (dense_)
      own_the_row();
    else
      std::sort(list_.begin(), list_.end(), lower_id);
    for (const auto &[id, length] : repetitions_.found()) {
      float *logit = nullptr;
      if (dense_) {
        logit = &copy_[id];
      } else {
        const auto at = std::lower_bound(list_.begin(), list_.end(), Candidate{0.0f, id}, lower_id);
        if (at != list_.end() && at->id == id)
          logit = &at->logit;
      }
      if (logit && *logit > kNever)
        *logit = saturate(static_cast<double>(*logit) - c.penalty(length) / scale_);
    }
    if (dense_)
      row_.scan(copy_.data(), row_.n);
    else
      std::sort(list_.begin(), list_.end(), higher);
    return SampleStatus::ok;
  }

  // The k best of what is left, best first, in `list_`.
  void keep_highest(size_t k) {
    if (dense_) {
      row_.keep_highest(k, &floats_, &list_);
      dense_ = false;
    } else if (list_.size() > k) {
      list_.resize(k); // a list is always best first until weigh()
    }
  }

  void top_k(uint64_t k) {
    if (k < row_.n)
      keep_highest(static_cast<size_t>(k));
  }

  double total_weight() {
    if (dense_)
      return sum_exp(row_.x, row_.n, row_.highest, scale_, nullptr);
    return weigh_list();
  }

  float highest_listed() const {
    float highest = kNever;
    for (const Candidate &candidate : list_)
      highest = std::max(highest, candidate.logit);
    return highest;
  }

  void copy_list() {
    floats_.resize(list_.size());
    for (size_t i = 0; i < list_.size(); ++i)
      floats_[i] = list_[i].logit;
  }

  double weigh_list() {
    copy_list();
    const float highest = highest_listed();
    weights_.resize(list_.size());
    return sum_exp(floats_.data(), floats_.size(), highest, scale_, weights_.data());
  }

  void top_p(double p) {
    const double highest = dense_ ? row_.highest : list_.front().logit;
    const double target = p * total_weight();
    const bool was_dense = dense_;
    // Few tokens usually hold the mass: look at the best 64, then at eight times as many.
    for (size_t k = 64;; k *= 8) {
      if (was_dense) {
        dense_ = true;
        keep_highest(k);
      }
      double cumulative = 0.0;
      for (size_t i = 0; i < list_.size(); ++i) {
        cumulative += exp_nonpositive((static_cast<double>(list_[i].logit) - highest) * scale_);
        if (cumulative >= target) {
          list_.resize(i + 1);
          return;
        }
      }
      if (!was_dense || list_.size() < k || k >= row_.n)
        return;
    }
  }

  void min_p(double p) {
    // p_i >= p * p_max, in logits
    const double highest = dense_ ? row_.highest : list_.front().logit;
    keep_from(highest + log_positive(p) / scale_);
  }

  // The logits that reach the threshold; the highest does.
  void keep_from(double threshold) {
    if (dense_) {
      row_.collect(threshold, &list_);
      dense_ = false;
      std::sort(list_.begin(), list_.end(), higher);
    } else {
      size_t n = 1;
      while (n < list_.size() && list_[n].logit >= threshold)
        ++n;
      list_.resize(n);
    }
  }

  // No factor: the deviation of x / t is that of x, over t.
  void top_n_sigma(double n) {
    if (!dense_)
      copy_list();
    const double sigma = dense_ ? standard_deviation(row_.x, row_.n)
                                : standard_deviation(floats_.data(), floats_.size());
    const double highest = dense_ ? row_.highest : list_.front().logit;
    keep_from(highest - n * sigma);
  }

  // Leaves out all that reach the threshold but the last of them.
  void exclude_top_choices(double threshold) {
    if (!dense_) {
      const double target = threshold * weigh_list();
      size_t reach = 0;
      while (reach < list_.size() && weights_[reach] >= target)
        ++reach;
      if (reach >= 2)
        list_.erase(list_.begin(), list_.begin() + static_cast<ptrdiff_t>(reach - 1));
      return;
    }
    const double target = threshold * weigh();
    Candidate last{0.0f, -1};
    for (size_t i = 0; i < row_.n; ++i) {
      const Candidate candidate{row_.x[i], static_cast<int32_t>(i)};
      if (weights_[i] >= target && row_.x[i] > kNever && (last.id < 0 || higher(last, candidate)))
        last = candidate;
    }
    if (last.id < 0)
      return;
    own_the_row();
    for (size_t i = 0; i < row_.n; ++i)
      if (higher({copy_[i], static_cast<int32_t>(i)}, last))
        copy_[i] = kNever;
    row_.scan(copy_.data(), row_.n);
  }

  double dynamic_temperature() {
    const SamplingConfig &c = *config_;
    const double low = std::max(0.0, c.temperature - c.dynatemp_range);
    const double high = c.temperature + c.dynatemp_range;
    const double total = dense_ ? weigh() : weigh_list();
    const Entropy left = dense_
                             ? entropy(row_.x, row_.n, row_.highest, scale_, weights_.data(), total)
                             : entropy(floats_.data(), floats_.size(), list_.front().logit, scale_,
                                       weights_.data(), total);
    if (left.count < 2)
      return c.temperature;
    const double share = left.nats / log_positive(static_cast<double>(left.count));
    if (c.dynatemp_exponent == 0.0)
      return high;
    if (!(share >= std::numeric_limits<double>::min()))
      return low;
    const double bent = exp_nonpositive(c.dynatemp_exponent * log_positive(std::min(share, 1.0)));
    return low + (high - low) * bent;
  }

  // Leaves out what surprises by more than mu bits, but for the best.
  void mirostat(double mu) {
    const double total = total_weight();
    const double highest = dense_ ? row_.highest : list_.front().logit;
    keep_from(std::min(highest, highest + (log_positive(total) - mu * kLn2) / scale_));
  }

  void typical_p(double p) {
    if (dense_) {
      row_.collect(kNever, &list_);
      dense_ = false;
    } else {
      std::sort(list_.begin(), list_.end(), lower_id);
    }
    const double total = weigh_list();
    const float highest = highest_listed();
    const double log_total = log_positive(total);
    const double expected =
        entropy(floats_.data(), floats_.size(), highest, scale_, weights_.data(), total).nats;
    deviations_.resize(list_.size());
    for (size_t i = 0; i < list_.size(); ++i) {
      const double surprise =
          log_total - (static_cast<double>(list_[i].logit) - static_cast<double>(highest)) * scale_;
      const double d = surprise - expected;
      deviations_[i] = {d < 0.0 ? -d : d, static_cast<uint32_t>(i)};
    }
    const double target = p * total;
    std::vector<uint32_t> &kept = indices_;
    kept.clear();
    size_t sorted = 0;
    double cumulative = 0.0;
    for (size_t i = 0; i < deviations_.size(); ++i) {
      if (i == sorted) {
        sorted = std::min(deviations_.size(), std::max<size_t>(64, sorted * 8));
        const auto middle = deviations_.begin() + sorted;
        if (middle != deviations_.end())
          std::nth_element(deviations_.begin() + i, middle, deviations_.end());
        std::sort(deviations_.begin() + i, middle);
      }
      const uint32_t which = deviations_[i].second;
      kept.push_back(which);
      cumulative += weights_[which];
      if (cumulative > target)
        break;
    }
    std::vector<Candidate> &chosen = spare_;
    chosen.clear();
    for (uint32_t which : kept)
      chosen.push_back(list_[which]);
    std::swap(list_, chosen);
    std::sort(list_.begin(), list_.end(), higher);
  }

  const SamplingConfig *config_ = nullptr;
  const SamplingInput *input_ = nullptr;
  double scale_ = 1.0; // 1 / temperature once temperature has acted
  bool dense_ = true;
  Row row_;
  std::vector<float> copy_;
  std::vector<Candidate> list_, spare_; // best first, save inside weigh and typical_p
  std::vector<double> weights_;
  std::vector<float> floats_;
  std::vector<int32_t> counts_; // all zero between calls
  Repetitions repetitions_;
  std::vector<std::pair<double, uint32_t>> deviations_;
  std::vector<uint32_t> indices_;
};

Choice &scratch() {
  thread_local Choice choice;
  return choice;
}

} // namespace

SampleStatus sample(const SamplingConfig &config, const SamplingInput &input, int32_t *token,
                    double *mirostat_mu) {
  Choice &choice = scratch();
  if (auto status = choice.run(config, input); status != SampleStatus::ok)
    return status;
  *mirostat_mu = input.mirostat_mu;
  if (config.temperature <= 0.0) {
    *token = choice.best();
    return SampleStatus::ok;
  }
  const auto drawn = choice.draw(uniform_at(input.seed, input.position));
  *token = drawn.id;
  if (config.mirostat == 2)
    *mirostat_mu -= config.mirostat_eta * (drawn.surprise / kLn2 - config.mirostat_tau);
  return SampleStatus::ok;
}

SampleStatus distribution(const SamplingConfig &config, const SamplingInput &input,
                          std::vector<int32_t> *ids, std::vector<double> *probabilities) {
  Choice &choice = scratch();
  if (auto status = choice.run(config, input); status != SampleStatus::ok)
    return status;
  ids->clear();
  probabilities->clear();
  if (config.temperature <= 0.0) {
    ids->push_back(choice.best());
    probabilities->push_back(1.0);
    return SampleStatus::ok;
  }
  const double total = choice.weigh();
  for (size_t i = 0; i < choice.size(); ++i)
    if (choice.alive(i)) {
      ids->push_back(choice.id_at(i));
      probabilities->push_back(choice.weight(i) / total);
    }
  return SampleStatus::ok;
}

SampleStatus log_probabilities(const float *logits, size_t n_vocab, int32_t token, size_t n_top,
                               float *token_logprob, std::vector<TokenScore> *top) {
  thread_local Row row;
  thread_local std::vector<float> floats;
  thread_local std::vector<Candidate> list;
  top->clear();
  if (token < 0 || static_cast<size_t>(token) >= n_vocab)
    return SampleStatus::token_outside;
  if (!row.scan(logits, n_vocab))
    return SampleStatus::not_a_number;
  if (!(row.highest > kNever))
    return SampleStatus::nothing_left;
  const double highest = row.highest;
  const double log_total = log_positive(sum_exp(logits, n_vocab, row.highest, 1.0, nullptr));
  const auto score = [&](float logit) {
    return saturate((static_cast<double>(logit) - highest) - log_total);
  };
  *token_logprob = score(logits[token]);
  if (n_top > 0) {
    row.keep_highest(n_top, &floats, &list);
    for (const Candidate &candidate : list)
      top->push_back({candidate.id, score(candidate.logit)});
  }
  return SampleStatus::ok;
}

} // namespace insula
