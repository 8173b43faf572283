#include "pretokenizers.h"
#include "error.h"

#include <map>
#include <memory>
#include <mutex>

namespace insula::tok {

namespace {

// Expressions that more than one name uses.
constexpr std::string_view kGpt2 =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
constexpr std::string_view kLlama3 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kQwen2 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kO200k =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kDeepSeek3 =
    R"([!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kBloom =
    R"( ?[^(\s|.,!?\x{2026}\x{3002}\x{FF0C}\x{3001}\x{964}\x{6D4}\x{60C})]+)";
constexpr std::string_view kNumber = R"(\p{N})", kNumber3 = R"(\p{N}{1,3})";
constexpr std::string_view kCjkKana = R"([\x{4E00}-\x{9FA5}\x{3040}-\x{309F}\x{30A0}-\x{30FF}]+)";
constexpr std::string_view kCjkWide = R"([\x{4E00}-\x{9FA5}\x{800}-\x{4E00}\x{AC00}-\x{D7FF}]+)";
constexpr std::string_view kNewlines = R"([^\n]+|[\n]+)";
// Steps that need more than a regular expression to stay linear; see the functions below.
constexpr std::string_view kDigitGroupsToWordEnd = "@digit-groups-to-word-end";
constexpr std::string_view kCutDigitsByThree = "@cut-digits-by-three";
constexpr std::string_view kTrailingSpace = "@trailing-space";

const std::vector<PreRule> &rules() {
  static const std::vector<PreRule> all = {
      {.names = " default ",
       .steps = {R"([\p{P}\$\+<=>\^~\|]+)", kGpt2, R"(\p{N}+)", "[0-9][0-9][0-9]"}},
      {.names = " gpt-2 phi-2 jina-es jina-de gigachat jina-v2-es jina-v2-de a.x-4.0 mellum "
                "modern-bert jina-v1-en jina-v2-code roberta-bpe mpt olmo jais exaone4 trillion "
                "granite-docling ",
       .steps = {kGpt2}},
      {.names = " llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano ",
       .steps = {kLlama3},
       .ignore_merges = true,
       .add_bos = true},
      {.names = " dbrx smaug-bpe glm4 chatglm-bpe ", .steps = {kLlama3}},
      {.names = " minicpm5 ",
       .steps =
           {kNumber3,
            R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)"},
       .ignore_merges = true},
      {.names = " jais-2 ",
       .steps =
           {R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1})"}},
      {.names = " qwen2 deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan solar-open grok-2 ",
       .steps = {kQwen2}},
      {.names = " qwen35 ",
       .steps =
           {R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)"}},
      {.names = " ufakzeka ",
       .steps =
           {R"([^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)"}},
      {.names = " laguna ", .steps = {kNewlines, kQwen2}},
      {.names = " seed-coder ",
       .steps =
           {R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+)"}},
      {.names = " bailingmoe bailingmoe2 llada-moe ",
       .steps =
           {R"('(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+)"}},
      // (?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+ in the file: a letter, then any mix of letters, marks
      // and a space before a letter. Written so that the loop leaves nothing behind.
      {.names = " exaone-moe ",
       .steps =
           {R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}(?:[\p{L}\p{M}]+| \p{L})*+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+)"}},
      {.names = " gpt-4o llama4 kanana2 talkie minimax-m2 ", .steps = {kO200k}},
      {.names = " granite-embed-multi-97m ", .steps = {kO200k}, .ignore_merges = true},
      {.names = " tiny_aya cohere2moe ", .steps = {kDigitGroupsToWordEnd, kO200k}},
      {.names = " tekken ",
       .steps =
           {R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)"},
       .ignore_merges = true,
       .add_bos = true},
      {.names = " kimi-k2 ",
       .steps =
           {R"([\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)"}},
      {.names = " youtu ",
       .steps =
           {R"([\x{AC00}-\x{D7A3}\x{3131}-\x{318E}]+|[\x{FF01}\x{2026}\x{201C}\x{201D}\x{2018}\x{2019}\x{2014}\x{FF1A}\x{FF1B}\x{FF0C}\x{3001}-\x{303F}\x{FE30}-\x{FE4F}]+|[\x{3105}-\x{312F}]+|[\x{4E00}-\x{9FA5}\x{3040}-\x{309F}\x{30A0}-\x{30FF}]+)",
            R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)"},
       .ignore_merges = true},
      {.names = " deepseek-v3 hunyuan-dense joyai-llm hy_v4 ",
       .steps = {kNumber3, kCjkKana, kDeepSeek3}},
      {.names = " spark2_5 ",
       .steps =
           {kNumber3, kCjkKana,
            R"([!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+|[\r\n]|\s+(?!\S)|\s+)",
            kNumber}},
      {.names = " deepseek-llm ",
       .steps = {R"([\r\n])",
                 R"(\s?[A-Za-z\x{B5}\x{C0}-\x{D6}\x{D8}-\x{F6}\x{F8}-\x{1BA}\x{1BC}-\x{1BF}\x{1C4}-\x{293}\x{295}-\x{2AF}\x{370}-\x{373}\x{376}\x{377}\x{37B}-\x{37D}\x{37F}\x{386}\x{388}-\x{38A}\x{38C}\x{38E}-\x{3A1}\x{3A3}-\x{3F5}\x{3F7}-\x{481}\x{48A}-\x{52F}\x{531}-\x{556}\x{10A0}-\x{10C5}\x{13A0}-\x{13F5}\x{13F8}-\x{13FD}\x{1C90}-\x{1CBA}\x{1CBD}-\x{1CBF}\x{1D00}-\x{1D2B}\x{1D6B}-\x{1D77}\x{1D79}-\x{1D9A}\x{1E00}-\x{1F15}\x{1F18}-\x{1F1D}\x{1F20}-\x{1F45}\x{1F48}-\x{1F4D}\x{1F50}-\x{1F57}\x{1F59}\x{1F5B}\x{1F5D}\x{1F5F}-\x{1F7D}\x{1F80}-\x{1FB4}\x{1FB6}-\x{1FBC}\x{1FBE}\x{1FC2}-\x{1FC4}\x{1FC6}-\x{1FCC}\x{1FD0}-\x{1FD3}\x{1FD6}-\x{1FDB}\x{1FE0}-\x{1FEC}\x{1FF2}-\x{1FF4}\x{1FF6}-\x{1FFC}\x{2102}\x{2107}\x{210A}-\x{2113}\x{2115}\x{2119}-\x{211D}\x{2124}\x{2126}\x{2128}\x{212A}-\x{212D}\x{212F}-\x{2134}\x{2139}\x{213C}-\x{213F}\x{2145}-\x{2149}\x{214E}\x{2183}\x{2184}\x{2C00}-\x{2C7B}\x{2C7E}-\x{2CE4}\x{2CEB}-\x{2CEE}\x{2CF2}\x{2CF3}\x{A640}-\x{A66D}\x{A680}-\x{A69B}\x{A722}-\x{A76F}\x{A771}-\x{A787}\x{A78B}-\x{A78E}\x{AB70}-\x{ABBF}\x{FB00}-\x{FB06}\x{FB13}-\x{FB17}\x{FF21}-\x{FF3A}\x{FF41}-\x{FF5A}\x{10400}-\x{1044F}\x{104B0}-\x{104D3}\x{104D8}-\x{104FB}\x{10C80}-\x{10CB2}\x{10CC0}-\x{10CF2}\x{118A0}-\x{118DF}\x{1E900}-\x{1E943}]+)",
                 R"(\s?[!-/:-~\x{FF01}-\x{FF0F}\x{FF1A}-\x{FF5E}\x{2018}-\x{201F}\x{3000}-\x{3002}]+)",
                 kTrailingSpace, kCjkWide, R"(\p{N}+)"}},
      {.names = " deepseek-coder ",
       .steps = {R"([\r\n])", R"(\s?\p{L}+)", R"(\s?\p{P}+)", kCjkWide, kNumber}},
      {.names = " falcon ", .steps = {R"([\p{P}\$\+<=>\^~\|`]+)", kGpt2, "[0-9][0-9][0-9]"}},
      {.names = " starcoder refact command-r smollm codeshell exaone minerva-7b mellum2 ",
       .steps = {kNumber, kGpt2}},
      {.names = " poro-chat bloom gpt3-finnish ", .steps = {kBloom}},
      {.names = " viking ", .steps = {kBloom, kNumber}},
      {.names = " chameleon ",
       .steps = {R"(<sentinel:[0-9]+>)", R"((IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z)",
                 R"(([\t\n]|    |  ))", kNumber, R"([\p{P}!-/:-@\[-`{-~])", kGpt2},
       .add_bos = true},
      {.names = " superbpe ", .steps = {R"(\p{N}+)", kCutDigitsByThree}},
      {.names = " gemma4 granite-embed-multi-311m ",
       .steps = {kNewlines},
       .add_bos = true,
       .spm_style = true,
       .newline_tokens = true},
      {.names = " sarvam-moe ", .steps = {kNewlines}, .spm_style = true},
  };
  return all;
}

// Known to llama.cpp and not done here, with the reason.
constexpr std::pair<std::string_view, std::string_view> kRefused[] = {
    {"afmoe", "its rule for digits is known only as another program's approximation"},
    {"whitespace", "it belongs to a vocabulary type that is not implemented"},
};

bool is_digit(uint32_t cp) { return in_categories(cp, bit(Nd)); }

// Calls found(first, last, count) for each maximal run of decimal digits.
template <class Found> void digit_runs(const char *text, size_t begin, size_t end, Found found) {
  for (size_t at = begin; at < end;) {
    unsigned length = 0;
    size_t stop = at, count = 0;
    while (stop < end && is_digit(decode_valid(text + stop, length)))
      stop += length, ++count;
    if (count)
      found(at, stop, count);
    else
      stop += length;
    at = stop;
  }
}

// From `at`, adds the ends of groups of digits: first count % 3 of them (if any), then threes.
void add_groups(const char *text, size_t at, size_t count, std::vector<size_t> &ends) {
  for (size_t left = count; left > 0;) {
    const size_t group = left % 3 ? left % 3 : 3;
    for (size_t i = 0; i < group; ++i)
      at += utf8_length(uint8_t(text[at]));
    ends.push_back(at);
    left -= group;
  }
}

// What Oniguruma's \w holds: alphabetic, marks, decimal digits, connectors; and below U+0100,
// where it goes by Latin-1, the superscript digits and the fractions too.
bool is_word(uint32_t cp) {
  if (in_categories(cp, kLetters | kMarks | bit(Nd) | bit(Nl) | bit(Pc)))
    return true;
  if (cp < 256)
    return in_categories(cp, bit(No));
  // Other_Alphabetic symbols: circled and squared Latin letters
  return cp - 0x24B6 < 52 || cp - 0x1F130 < 26 || cp - 0x1F150 < 26 || cp - 0x1F170 < 26;
}

// \d{1,3}(?=(?:\d{3})*\b): a run that ends where a word ends is grouped in threes from its right;
// any other run matches nowhere.
void digit_groups_to_word_end(const char *text, size_t begin, size_t end,
                              std::vector<size_t> &ends) {
  size_t gap = begin;
  digit_runs(text, begin, end, [&](size_t first, size_t last, size_t count) {
    unsigned length = 0;
    if (last < end && is_word(decode_valid(text + last, length)))
      return;
    if (gap < first)
      ends.push_back(first);
    add_groups(text, first, count, ends);
    gap = last;
  });
  if (gap < end)
    ends.push_back(end);
}

// (?=(\d{3})+(?!\d)): an empty match, so a cut, wherever a multiple of three digits is left.
void cut_digits_by_three(const char *text, size_t begin, size_t end, std::vector<size_t> &ends) {
  digit_runs(text, begin, end, [&](size_t first, size_t, size_t count) {
    if (count < 3)
      return;
    if (count % 3 == 0 && first > begin)
      ends.push_back(first);
    add_groups(text, first, count, ends);
    ends.pop_back(); // the end of the run is no cut
  });
  if (begin < end)
    ends.push_back(end);
}

// \s+$ where no newline is left inside: the white space that ends the text.
void trailing_space(const char *text, size_t begin, size_t end, std::vector<size_t> &ends) {
  size_t at = end;
  while (at > begin) {
    size_t back = at - 1;
    while ((uint8_t(text[back]) & 0xC0) == 0x80)
      --back;
    unsigned length = 0;
    if (!(properties(decode_valid(text + back, length)) & kWhitespace))
      break;
    at = back;
  }
  if (begin < at)
    ends.push_back(at);
  if (at < end)
    ends.push_back(end);
}

} // namespace

const PreRule &pre_rule(std::string_view name) {
  std::string wanted(1, ' ');
  wanted.append(name).append(1, ' ');
  if (!name.empty() && name.find(' ') == std::string_view::npos)
    for (const PreRule &rule : rules())
      if (rule.names.find(wanted) != std::string_view::npos)
        return rule;
  for (const auto &[refused, reason] : kRefused)
    if (refused == name)
      throw Fault("the pre-tokenizer '" + std::string(name) +
                      "' is not supported: " + std::string(reason),
                  true);
  std::string known;
  for (const std::string_view other : pre_names())
    known += (known.empty() ? "" : ", ") + std::string(other);
  throw Fault("the pre-tokenizer '" + std::string(name.substr(0, 64)) +
                  "' is not known, and another one would give other tokens; known are " + known,
              true);
}

std::vector<std::string_view> pre_names() {
  std::vector<std::string_view> names;
  for (const PreRule &rule : rules())
    for (size_t at = 1; at < rule.names.size();) {
      const size_t stop = rule.names.find(' ', at);
      names.push_back(rule.names.substr(at, stop - at));
      at = stop + 1;
    }
  return names;
}

PreTokenizer::PreTokenizer(const PreRule &rule) {
  for (const std::string_view step : rule.steps) {
    Step &made = steps_.emplace_back(Step{nullptr, {}});
    if (step == kDigitGroupsToWordEnd)
      made.cutter = digit_groups_to_word_end;
    else if (step == kCutDigitsByThree)
      made.cutter = cut_digits_by_three;
    else if (step == kTrailingSpace)
      made.cutter = trailing_space;
    else
      made.regex.emplace_back(step);
  }
}

const PreTokenizer &PreTokenizer::of(const PreRule &rule) {
  static std::mutex guard;
  static std::map<const PreRule *, std::unique_ptr<PreTokenizer>> made;
  const std::lock_guard lock(guard);
  std::unique_ptr<PreTokenizer> &at = made[&rule];
  if (!at)
    at = std::make_unique<PreTokenizer>(rule);
  return *at;
}

void PreTokenizer::split(const char *text, size_t begin, size_t end,
                         std::vector<size_t> &ends) const {
  Regex::Scratch scratch;
  std::vector<size_t> previous;
  ends.assign(begin < end ? 1 : 0, end);
  for (const Step &step : steps_) {
    previous.swap(ends);
    ends.clear();
    size_t from = begin;
    for (const size_t to : previous) {
      if (step.cutter)
        step.cutter(text, from, to, ends);
      else
        step.regex[0].split(text, from, to, ends, scratch);
      from = to;
    }
  }
}

} // namespace insula::tok
