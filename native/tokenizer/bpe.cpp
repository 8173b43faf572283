#include "bpe.h"
#include "error.h"
#include <algorithm>
#include <bit>

namespace insula::tok {

namespace {

// GPT-2's bytes_to_unicode (openai/gpt-2, encoder.py): printable bytes stand for themselves, the
// others are numbered from U+0100.
struct ByteAlphabet {
  std::array<uint16_t, 256> character;
  std::array<int16_t, 512> byte;
  ByteAlphabet() {
    byte.fill(-1);
    uint16_t other = 256;
    for (int b = 0; b < 256; ++b) {
      const bool printable = (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
      character[size_t(b)] = printable ? uint16_t(b) : other++;
      byte[character[size_t(b)]] = int16_t(b);
    }
  }
};
const ByteAlphabet &alphabet() {
  static const ByteAlphabet value;
  return value;
}

std::string quoted(std::string_view text) {
  std::string out;
  out += '\'';
  out += text.substr(0, 80);
  out += text.size() > 80 ? "...'" : "'";
  return out;
}

} // namespace

BpeModel::BpeModel(const Vocabulary &vocabulary, const Strings &merges, const PreRule &rule)
    : vocabulary_(vocabulary), rule_(rule), pre_(PreTokenizer::of(rule)) {
  if (rule.spm_style) {
    cutter_.emplace_back(vocabulary);
  } else {
    size_t found = 0;
    for (size_t b = 0; b < 256; ++b) {
      std::string character;
      append_utf8(character, alphabet().character[b]);
      byte_symbols_[b] = vocabulary.find(character);
      found += byte_symbols_[b] >= 0;
    }
    if (found < 128)
      throw Fault("the vocabulary says it is byte-level BPE, but only " + std::to_string(found) +
                  " of the 256 bytes have a token (a character-level or other vocabulary?)");
  }
  read_merges(merges);
}

void BpeModel::read_merges(const Strings &merges) {
  if (merges.count >= kMaxTokens)
    throw Fault("tokenizer.ggml.merges has " + std::to_string(merges.count) +
                " entries; fewer than " + std::to_string(kMaxTokens) + " are accepted");
  slots_.assign(std::bit_ceil(merges.count * 3 / 2 + 2), Slot{});
  const size_t mask = slots_.size() - 1;
  // In blocks, so that the memory of many lookups is fetched at once.
  constexpr size_t kBlock = 64;
  struct Line {
    std::array<std::string_view, 3> texts; // left, right, joined
    std::array<uint64_t, 3> hashes;
    std::array<int32_t, 3> ids;
    uint64_t key, slot;
  };
  std::array<Line, kBlock> lines;
  std::array<std::string, kBlock> joined;
  for (size_t from = 0; from < merges.count; from += kBlock) {
    const size_t n = std::min(kBlock, merges.count - from);
    for (size_t i = 0; i < n; ++i) {
      const std::string_view line = merges.at(from + i, "tokenizer.ggml.merges");
      const size_t space = line.find(' ', 1);
      const bool two = space != std::string_view::npos && space + 1 < line.size();
      if (!two || line.size() > 2 * kMaxText)
        throw Fault("tokenizer.ggml.merges[" + std::to_string(from + i) + "] " + quoted(line) +
                    " is not two tokens with a space between");
      joined[i].assign(line, 0, space).append(line, space + 1);
      lines[i].texts = {line.substr(0, space), line.substr(space + 1), joined[i]};
      for (size_t k = 0; k < 3; ++k) {
        lines[i].hashes[k] = hash_text(lines[i].texts[k]);
        vocabulary_.prefetch(lines[i].hashes[k], 0);
      }
    }
    for (const int step : {1, 2})
      for (size_t i = 0; i < n; ++i)
        for (const uint64_t hash : lines[i].hashes)
          vocabulary_.prefetch(hash, step);
    for (size_t i = 0; i < n; ++i) {
      Line &line = lines[i];
      for (size_t k = 0; k < 3; ++k) {
        line.ids[k] = vocabulary_.find(line.texts[k], line.hashes[k]);
        if (line.ids[k] < 0)
          throw Fault("tokenizer.ggml.merges[" + std::to_string(from + i) + "] names " +
                      quoted(line.texts[k]) + ", which is not in the vocabulary");
      }
      line.key = (uint64_t(line.ids[0]) << 32 | uint64_t(line.ids[1])) + 1;
      line.slot = hash_pair(line.key) & mask;
      prefetch_memory(&slots_[line.slot]);
    }
    for (size_t i = 0; i < n; ++i) {
      size_t slot = lines[i].slot;
      while (slots_[slot].key && slots_[slot].key != lines[i].key)
        slot = (slot + 1) & mask;
      if (!slots_[slot].key) // of repeats the first counts
        slots_[slot] = {lines[i].key, {uint32_t(from + i), lines[i].ids[2]}};
    }
  }
}

Merge BpeModel::find(int32_t left, int32_t right) const {
  if ((left | right) < 0)
    return {};
  const uint64_t key = (uint64_t(left) << 32 | uint64_t(right)) + 1;
  const size_t mask = slots_.size() - 1;
  for (size_t slot = hash_pair(key) & mask; slots_[slot].key; slot = (slot + 1) & mask)
    if (slots_[slot].key == key)
      return slots_[slot].merge;
  return {};
}

int32_t BpeModel::whole(std::string_view word) const {
  if (word.size() > vocabulary_.longest())
    return -1;
  std::string encoded;
  for (const char c : word)
    append_utf8(encoded, alphabet().character[uint8_t(c)]);
  const int32_t id = vocabulary_.find(encoded);
  return id >= 0 && vocabulary_.has(id, Control | Unknown) ? -1 : id;
}

void BpeModel::encode_bytes(std::string_view word, Merger &merger,
                            std::vector<int32_t> &out) const {
  if (rule_.ignore_merges)
    if (const int32_t id = whole(word); id >= 0)
      return out.push_back(id);
  merger.clear();
  for (size_t i = 0; i < word.size(); ++i) {
    const int32_t id = byte_symbols_[uint8_t(word[i])];
    if (id < 0)
      refuse_character(word, i);
    merger.add(id, i);
  }
  merger.run(word.size(), [this](int32_t l, int32_t r, uint32_t, uint32_t) { return find(l, r); });
  out.insert(out.end(), merger.ids.begin(), merger.ids.end());
}

void BpeModel::encode_characters(std::string_view word, Merger &merger,
                                 std::vector<int32_t> &out) const {
  merger.clear();
  for (size_t i = 0; i < word.size();) {
    const size_t length = utf8_length(uint8_t(word[i]));
    merger.add(vocabulary_.find(word.substr(i, length)), i);
    i += length;
  }
  merger.run(word.size(), [this](int32_t l, int32_t r, uint32_t, uint32_t) { return find(l, r); });
  for (size_t i = 0; i < merger.ids.size(); ++i) {
    if (merger.ids[i] >= 0) {
      out.push_back(merger.ids[i]);
      continue;
    }
    const size_t end = i + 1 < merger.ids.size() ? merger.begins[i + 1] : word.size();
    append_byte_tokens(vocabulary_, word.substr(merger.begins[i], end - merger.begins[i]), out);
  }
}

void BpeModel::encode(std::string_view text, bool, std::vector<int32_t> &out) const {
  std::string marked;
  if (rule_.spm_style) {
    marked = mark_spaces(text);
    text = marked;
  }
  std::vector<size_t> ends;
  pre_.split(text.data(), 0, text.size(), ends);
  WordCache cache(text.size());
  Merger merger;
  size_t from = 0;
  for (const size_t to : ends) {
    const std::string_view word = text.substr(from, to - from);
    from = to;
    if (!rule_.spm_style) {
      cache.append(word, out, [&] { encode_bytes(word, merger, out); });
      continue;
    }
    if (rule_.newline_tokens && word[0] == '\n')
      if (const int32_t id = vocabulary_.find(word); id >= 0) {
        out.push_back(id);
        continue;
      }
    for (size_t at = 0; at < word.size();) {
      const size_t stop = cutter_[0].next(word, at);
      const std::string_view part = word.substr(at, stop - at);
      cache.append(part, out, [&] { encode_characters(part, merger, out); });
      at = stop;
    }
  }
}

void BpeModel::piece(std::string_view token, std::string &out) const {
  if (rule_.spm_style)
    return append_unmarked(token, out);
  const size_t start = out.size();
  for (size_t i = 0; i < token.size();) {
    unsigned length = 0;
    const uint32_t cp = decode_valid(token.data() + i, length);
    i += length;
    if (cp >= 512 || alphabet().byte[cp] < 0) { // not written in the byte alphabet: plain text
      out.replace(start, std::string::npos, token);
      return;
    }
    out += char(alphabet().byte[cp]);
  }
}

} // namespace insula::tok
