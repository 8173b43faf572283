// Fuzz target: a vocabulary out of bytes, and text through it.
//
// Input: two bytes of choices, then fields of a length byte and that many bytes: tokens up to an
// empty one, merges up to an empty one, the charsmap; then scores, types and special ids as they
// come; what is left is the text. Build with clang:
//   clang++ -std=c++20 -g -O1 -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all
//     native/fuzz/tokenizer_fuzz.cpp native/tokenizer/*.cpp
// Checked besides the sanitizers: the only exception is Fault; ids lie in the vocabulary; pieces of
// a pre-tokenizer follow on each other and cover the text; decoding all at once is decoding each.
#include "../tokenizer/error.h"
#include "../tokenizer/pretokenizers.h"
#include "../tokenizer/tokenizer.h"
#include "../tokenizer/unicode.h"

#include <cstdlib>
#include <cstring>

using namespace insula::tok;

namespace {

void require(bool holds) {
  if (!holds)
    std::abort();
}

class Input {
public:
  Input(const uint8_t *data, size_t size)
      : at_(reinterpret_cast<const char *>(data)), left_(size) {}
  uint8_t byte() { return left_ ? uint8_t(take(1)[0]) : 0; }
  std::string_view field() { return take(byte()); }
  std::string_view rest() { return take(left_); }

private:
  std::string_view take(size_t n) {
    n = std::min(n, left_);
    const std::string_view taken(at_, n);
    at_ += n;
    left_ -= n;
    return taken;
  }
  const char *at_;
  size_t left_;
};

struct List {
  std::string blob;
  std::vector<int64_t> offsets{0};
  void add(std::string_view text) {
    blob += text;
    offsets.push_back(int64_t(blob.size()));
  }
  Strings view() const { return {blob.data(), blob.size(), offsets.data(), offsets.size() - 1}; }
};

// What a usable vocabulary of each family has: without it nearly every input would be refused.
void add_alphabet(const std::string &model, List &tokens, std::vector<int32_t> &types) {
  if (model == "gpt2") {
    for (uint32_t other = 256, b = 0; b < 256; ++b) {
      const bool printable = (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
      std::string text;
      append_utf8(text, printable ? b : other++);
      tokens.add(text);
      types.push_back(1);
    }
  } else if (model != "bert") {
    for (int b = 0; b < 256; ++b) {
      char text[8];
      std::snprintf(text, sizeof text, "<0x%02X>", b);
      tokens.add(text);
      types.push_back(6);
    }
  }
}

void run(const Metadata &metadata, std::string_view text) {
  const Tokenizer tokenizer(metadata);
  const auto size = int32_t(tokenizer.vocabulary().size());
  for (const bool parse_special : {false, true}) {
    std::vector<int32_t> ids;
    try {
      ids = tokenizer.encode(text, true, parse_special);
    } catch (const Fault &) {
      continue;
    }
    std::vector<int64_t> wide(ids.begin(), ids.end());
    std::string joined;
    for (const int32_t id : ids) {
      require(id >= 0 && id < size);
      joined += tokenizer.piece(id);
    }
    require(tokenizer.decode(wide.data(), wide.size(), false, true) == joined);
    tokenizer.decode(wide.data(), wide.size(), true, false);
  }
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static constexpr const char *kModels[] = {"gpt2", "llama", "bert", "t5", "gemma4"};
  static const std::vector<std::string_view> kNames = pre_names();
  Input input(data, size);
  const uint8_t choice = input.byte();
  Metadata m;
  m.model = kModels[choice % 5];
  const uint8_t flags = uint8_t(choice / 5);
  m.pre = kNames[input.byte() % kNames.size()];
  if (flags & 1)
    m.name = "phi-3";
  m.add_bos = flags >> 1 & 1;
  m.add_space_prefix = flags >> 2 & 1;
  m.remove_extra_whitespace = m.model == "llama" ? 0 : flags >> 3 & 1;

  List tokens, merges;
  std::vector<int32_t> types;
  if (flags & 16)
    add_alphabet(m.model, tokens, types);
  for (std::string_view text; !(text = input.field()).empty();)
    tokens.add(text);
  for (std::string_view text; !(text = input.field()).empty();)
    merges.add(text);
  const std::string charsmap(input.field());
  const size_t n = tokens.offsets.size() - 1;
  std::vector<float> scores(n);
  for (size_t i = types.size(); i < n; ++i) {
    const auto value = int8_t(input.byte());
    scores[i] = value == 127 ? 1e38f * 10 : float(value);
    types.push_back(input.byte() % 8);
  }
  for (int64_t *id : {&m.bos, &m.eos, &m.unk, &m.sep})
    *id = int64_t(input.byte()) - 1;
  m.tokens = tokens.view();
  m.merges = merges.view();
  m.has_merges = true;
  m.scores = scores.data();
  m.types = types.data();
  m.charsmap = charsmap;

  const std::string_view text = input.rest().substr(0, 4096);
  if (find_invalid(text) == std::string_view::npos) {
    std::vector<size_t> ends;
    PreTokenizer::of(pre_rule(m.pre)).split(text.data(), 0, text.size(), ends);
    size_t last = 0;
    for (const size_t end : ends) {
      require(end > last);
      last = end;
    }
    require(last == text.size());
  }
  try {
    run(m, text);
  } catch (const Fault &) {
  }
  return 0;
}
