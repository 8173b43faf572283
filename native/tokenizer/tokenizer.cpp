#include "tokenizer.h"

#include <algorithm>
#include "bpe.h"
#include "error.h"
#include "spm.h"
#include "unicode.h"
#include "unigram.h"
#include "wordpiece.h"
#include <cstring>

namespace insula::tok {

namespace {

bool given(int flag, bool otherwise) { return flag < 0 ? otherwise : flag != 0; }

bool is_c_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

} // namespace

Tokenizer::Tokenizer(const Metadata &metadata)
    : vocabulary_(metadata.tokens, metadata.scores, metadata.types) {
  const std::string &model = metadata.model;
  family_ = model == "llama"  ? "spm"
            : model == "bert" ? "wordpiece"
            : model == "t5"   ? "unigram"
                              : "bpe";
  read_special_ids(metadata);
  mark_special_tokens(metadata);
  build_model(metadata);
  if (add_bos_ && bos < 0)
    throw Fault("the vocabulary wants a begin token, but tokenizer.ggml.bos_token_id is missing");
  if (add_eos_ && (family_ == "wordpiece" ? sep : eos) < 0)
    throw Fault("the vocabulary wants an end token, but tokenizer.ggml." +
                std::string(family_ == "wordpiece" ? "seperator_token_id" : "eos_token_id") +
                " is missing");
  all_special_ = std::make_unique<SpecialMatcher>(vocabulary_, Control | UserDefined | Unknown, 0);
  user_special_ = std::make_unique<SpecialMatcher>(vocabulary_, UserDefined, Control | Unknown);
}

int32_t Tokenizer::special_id(const char *key, int64_t id) const {
  if (id < 0 || id == 0xFFFFFFFF)
    return -1; // llama.cpp writes 2^32 - 1 for "none"
  if (uint64_t(id) >= vocabulary_.size())
    throw Fault("tokenizer.ggml." + std::string(key) + " is " + std::to_string(id) +
                ", but the vocabulary has " + std::to_string(vocabulary_.size()) + " tokens");
  return int32_t(id);
}

void Tokenizer::build_model(const Metadata &m) {
  const std::string &model = m.model;
  if (model == "gpt2" || model == "gemma4") {
    if (model == "gpt2" && m.pre.empty())
      throw Fault("tokenizer.ggml.pre is missing: a byte-pair vocabulary does not say how text is"
                  " cut before merging, and guessing would give other tokens; name the"
                  " pre-tokenizer (for example 'gpt-2' or 'llama-bpe')");
    if (!m.has_merges)
      throw Fault("tokenizer.ggml.merges is missing; a byte-pair vocabulary needs its merges");
    const PreRule &rule = pre_rule(model == "gemma4" ? "gemma4" : m.pre);
    // llama.cpp insists on the begin token for gemma4 whatever the file says.
    add_bos_ = rule.newline_tokens || given(m.add_bos, rule.add_bos);
    add_eos_ = given(m.add_eos, false);
    model_ = std::make_unique<BpeModel>(vocabulary_, m.merges, rule);
  } else if (model == "llama") {
    if (!m.scores)
      throw Fault("tokenizer.ggml.scores is missing; the 'llama' vocabulary needs them");
    if (m.remove_extra_whitespace > 0)
      throw Fault("tokenizer.ggml.remove_extra_whitespaces is set, which is not supported for the"
                  " 'llama' vocabulary",
                  true);
    add_bos_ = given(m.add_bos, true);
    add_eos_ = given(m.add_eos, false);
    strips_space_ = given(m.add_space_prefix, true);
    model_ = std::make_unique<SpmModel>(vocabulary_, strips_space_);
  } else if (model == "bert") {
    add_bos_ = add_eos_ = true;
    strips_space_ = true;
    const bool lowercase = given(m.lowercase, true);
    if (unk < 0)
      throw Fault("tokenizer.ggml.unknown_token_id is missing, and there is no [UNK]");
    model_ = std::make_unique<WordPieceModel>(vocabulary_, unk, lowercase,
                                              given(m.strip_accents, lowercase));
  } else if (model == "t5") {
    if (!m.scores)
      throw Fault("tokenizer.ggml.scores is missing; the 't5' vocabulary needs them");
    add_bos_ = given(m.add_bos, false);
    add_eos_ = given(m.add_eos, true);
    strips_space_ = given(m.add_space_prefix, false);
    model_ = std::make_unique<UnigramModel>(
        vocabulary_, UnigramModel::Options{unk, strips_space_,
                                           given(m.remove_extra_whitespace, false), m.charsmap});
  } else if (model == "no_vocab" || model == "none") {
    throw Fault("the model has no vocabulary (tokenizer.ggml.model is '" + model + "')", true);
  } else {
    throw Fault("tokenizer.ggml.model is '" + model.substr(0, 64) +
                    "'; supported are gpt2, llama, bert, t5, gemma4",
                true);
  }
}

void Tokenizer::read_special_ids(const Metadata &m) {
  bos = special_id("bos_token_id", m.bos);
  eos = special_id("eos_token_id", m.eos);
  eot = special_id("eot_token_id", m.eot);
  eom = special_id("eom_token_id", m.eom);
  unk = special_id("unknown_token_id", m.unk);
  sep = special_id("seperator_token_id", m.sep);
  pad = special_id("padding_token_id", m.pad);
  mask = special_id("mask_token_id", m.mask);
  const int32_t cls = special_id("cls_token_id", m.cls);
  // Where a file leaves an id out, the token that carries the family's own name for it.
  const auto named = [this](int32_t &id, std::string_view text) {
    if (id >= 0)
      return;
    const int32_t found = vocabulary_.find(text);
    if (found >= 0 && vocabulary_.has(found, Control | Unknown))
      id = found;
  };
  if (family_ == "wordpiece") {
    if (bos < 0)
      bos = cls;
    named(bos, "[CLS]");
    named(sep, "[SEP]");
    named(unk, "[UNK]");
    named(pad, "[PAD]");
    named(mask, "[MASK]");
  } else if (family_ == "spm") {
    named(bos, "<s>");
    named(eos, "</s>");
    named(unk, "<unk>");
  } else if (family_ == "unigram") {
    named(eos, "</s>");
    named(unk, "<unk>");
    named(pad, "<pad>");
  }
}

int32_t Tokenizer::checked(int64_t id) const {
  if (id < 0 || uint64_t(id) >= vocabulary_.size())
    throw Fault("token id " + std::to_string(id) + " is not in the vocabulary of " +
                std::to_string(vocabulary_.size()) + " tokens");
  return int32_t(id);
}

std::vector<size_t> Tokenizer::control_texts(std::string_view text) const {
  std::vector<size_t> out;
  for (size_t at = 0; at < text.size(); at = out.back() + 1) {
    const auto match = all_special_->next(text, at);
    if (match.id < 0)
      break;
    out.push_back(match.begin);
  }
  return out;
}

std::vector<int32_t> Tokenizer::encode(std::string_view text, bool add_special, bool parse_special,
                                       const std::vector<size_t> &plain) const {
  if (text.size() >= size_t(1) << 31)
    throw Fault("the text has 2 GiB or more");
  if (const size_t bad = find_invalid(text); bad != std::string_view::npos)
    throw Fault("the text is not valid UTF-8 at byte " + std::to_string(bad));
  std::vector<int32_t> out;
  if (add_special && add_bos_)
    out.push_back(bos);
  const SpecialMatcher &matcher = parse_special ? *all_special_ : *user_special_;
  bool after_special = true;
  size_t at = 0;
  while (at < text.size()) {
    auto match = matcher.next(text, at);
    while (match.id >= 0 && std::binary_search(plain.begin(), plain.end(), match.begin))
      match = matcher.next(text, match.begin + 1);
    size_t stop = match.begin;
    if (match.id >= 0 && vocabulary_.has(match.id, StripLeft))
      while (stop > at && is_c_space(text[stop - 1]))
        --stop;
    if (stop > at) {
      model_->encode(text.substr(at, stop - at), after_special, out);
      after_special = false;
    }
    at = match.end;
    if (match.id < 0)
      break;
    out.push_back(match.id);
    after_special = true;
    if (vocabulary_.has(match.id, StripRight))
      while (at < text.size() && is_c_space(text[at]))
        ++at;
  }
  if (add_special && add_eos_)
    out.push_back(family_ == "wordpiece" ? sep : eos);
  return out;
}

std::string Tokenizer::piece(int64_t raw_id) const {
  const int32_t id = checked(raw_id);
  const std::string_view text = vocabulary_.text(id);
  std::string out;
  if (vocabulary_.has(id, Unknown | Control | UserDefined))
    out = text;
  else if (vocabulary_.has(id, Byte))
    out = char(byte_value(text));
  else if (vocabulary_.has(id, Normal))
    model_->piece(text, out);
  return out;
}

std::string Tokenizer::decode(const int64_t *ids, size_t count, bool skip_special,
                              bool continues) const {
  std::string out;
  bool first = !continues && strips_space_;
  for (size_t i = 0; i < count; ++i) {
    if (skip_special && is_special(ids[i]))
      continue;
    const std::string bytes = piece(ids[i]);
    out.append(bytes, first && !bytes.empty() && bytes[0] == ' ' ? 1 : 0);
    first = false;
  }
  return out;
}

} // namespace insula::tok
