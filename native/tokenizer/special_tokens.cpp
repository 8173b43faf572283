// Which tokens are special beyond what the file says, by their texts: what ends an answer, and what
// swallows the space beside it. The lists are llama.cpp's (src/llama-vocab.cpp, MIT).
#include "error.h"
#include "tokenizer.h"
#include <algorithm>

namespace insula::tok {

namespace {

// In order of preference for the end of a turn.
constexpr std::string_view kEndOfTurn[] = {"<|eot_id|>",
                                           "<|im_end|>",
                                           "<|end|>",
                                           "<end_of_turn>",
                                           "<turn|>",
                                           "<|endoftext|>",
                                           "<|end_of_text|>",
                                           "<EOT>",
                                           "_<EOT>",
                                           "[EOT]",
                                           "<\xEF\xBD\x9C"
                                           "end\xE2\x96\x81of\xE2\x96\x81sentence\xEF\xBD\x9C>",
                                           "<end_of_utterance>"};
constexpr std::string_view kEndOfMessage = "<|eom_id|>";
// The first that is there also ends generation (fill-in-the-middle padding, repository, file).
constexpr std::string_view kFillPadding[] = {"<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>",
                                             "[PAD]"};
constexpr std::string_view kFillRepository[] = {"<|fim_repo|>", "<|repo_name|>", "<fim-repo>",
                                                "<REPO>", "<reponame>"};
constexpr std::string_view kFillFile[] = {"<|file_sep|>"};
constexpr std::string_view kEnd[] = {"<|eot_id|>",
                                     "<|im_end|>",
                                     "<|end|>",
                                     "<|return|>",
                                     "<|call|>",
                                     "<|flush|>",
                                     "<|calls|>",
                                     "<end_of_turn>",
                                     "<|endoftext|>",
                                     "</s>",
                                     "<|eom_id|>",
                                     "<EOT>",
                                     "_<EOT>",
                                     "[EOT]",
                                     "[EOS]",
                                     "<|end_of_text|>",
                                     "<end_of_utterance>",
                                     "<eos>",
                                     "<turn|>",
                                     "<|tool_response>",
                                     "<\xEF\xBD\x9C"
                                     "end\xE2\x96\x81of\xE2\x96\x81sentence\xEF\xBD\x9C>",
                                     "[e~["};

} // namespace

void Tokenizer::mark_special_tokens(const Metadata &m) {
  const auto find = [this](std::string_view text) { return vocabulary_.find(text); };
  // A normal token counts only if its text cannot be meant as text: <|im_end|> in a file with wrong
  // types does, the </s> of a vocabulary that knows HTML does not.
  const auto special = [&](std::string_view text) {
    const int32_t id = find(text);
    const bool marked = text.find("<|") == 0 || text.ends_with("|>");
    return id >= 0 && (marked || !vocabulary_.has(id, Normal)) ? id : -1;
  };
  const auto first = [&](const auto &texts) {
    for (const std::string_view text : texts)
      if (const int32_t id = special(text); id >= 0)
        return id;
    return int32_t(-1);
  };
  const auto end = [this](int32_t id) {
    if (id >= 0 && std::find(end_ids.begin(), end_ids.end(), id) == end_ids.end())
      end_ids.push_back(id);
  };
  const auto end_by_text = [&](int32_t id) {
    if (id >= 0)
      vocabulary_.set_attributes(id, vocabulary_.attributes(id) | Control);
    end(id);
  };
  const auto no_end = [this](int32_t id, uint8_t attributes) {
    std::erase(end_ids, id);
    vocabulary_.set_attributes(id, attributes);
  };
  // A BERT has no end of generation, and its [PAD] is no fill-in-the-middle token.
  if (family_ != "wordpiece") {
    if (eot < 0)
      eot = first(kEndOfTurn);
    if (eom < 0)
      eom = special(kEndOfMessage);
    for (const std::string_view text : kEnd)
      end_by_text(special(text));
    end_by_text(first(kFillPadding));
    end_by_text(first(kFillRepository));
    end_by_text(first(kFillFile));
  }
  for (const int32_t id : {eos, eot, eom})
    end(id);

  // In the harmony and solar formats <|end|> closes a message, not the answer; in gemma4 </s> is
  // ordinary text.
  const auto ends = [&](std::string_view text) {
    const int32_t id = find(text);
    return std::find(end_ids.begin(), end_ids.end(), id) != end_ids.end() ? id : -1;
  };
  if (const int32_t id = ends("<|end|>"); id >= 0) {
    const bool calls = ends("<|call|>") >= 0 || ends("<|calls|>") >= 0;
    if (calls && (ends("<|return|>") >= 0 || ends("<|flush|>") >= 0))
      no_end(id, Control);
  }
  if (const int32_t id = ends("</s>"); id >= 0 && ends("<|tool_response>") >= 0)
    no_end(id, Normal);
  std::sort(end_ids.begin(), end_ids.end());

  // Space around special tokens, which the file does not tell: by pre-tokenizer and model name.
  const auto strip = [&](std::string_view text, uint8_t bit, bool on) {
    if (const int32_t id = find(text); id >= 0) {
      const uint8_t bits = vocabulary_.attributes(id);
      vocabulary_.set_attributes(id, on ? bits | bit : bits & ~bit);
    }
  };
  std::string name = m.name;
  for (char &c : name)
    c = c >= 'A' && c <= 'Z' ? char(c + 32) : c;
  const auto contains = [](const std::string &text, auto... parts) {
    return ((text.find(parts) != std::string::npos) || ...);
  };
  if (contains(m.pre, "jina-v2-de", "jina-v2-es", "jina-v2-code") ||
      contains(m.architecture, "nomic-bert-moe", "jina-bert-v3")) {
    strip("<mask>", StripLeft, true);
  } else if (contains(name, "phi-3", "phi3")) {
    for (int32_t id = 0; id < int32_t(vocabulary_.size()); ++id)
      if (vocabulary_.has(id, Control | UserDefined | Unknown))
        vocabulary_.set_attributes(id, vocabulary_.attributes(id) | StripRight);
    strip("</s>", StripRight, true);
    for (const std::string_view text : {"<unk>", "<s>", "<|endoftext|>"})
      strip(text, StripRight, false);
  } else if (contains(name, "modern-bert")) {
    strip("[MASK]", StripLeft, true);
  }
}

} // namespace insula::tok
