// Pattern text -> syntax tree -> instructions. Patterns are our own constants, so a bad one is our
// mistake: it ends in a Fault that quotes the pattern, and a test compiles them all.
#include "error.h"
#include "regex.h"
#include <utility>

namespace insula::tok {

namespace {

struct Node {
  enum Kind { Set, Sequence, Choice, Repeat, Ahead, NotAhead } kind;
  uint32_t set = 0, least = 0, most = 0;
  bool possessive = false;
  std::vector<Node> children;
};

} // namespace

class RegexCompiler {
public:
  RegexCompiler(std::string_view pattern, Regex &out) : pattern_(pattern), out_(out) {}

  void run() {
    Node root = choice();
    if (at_ != pattern_.size())
      fail("an unmatched )");
    if (root.kind != Node::Choice)
      root = Node{Node::Choice, 0, 0, 0, false, {std::move(root)}};
    if (root.children.size() > 32)
      fail("more than 32 alternatives");
    for (const Node &child : root.children) {
      Regex::Alternative alternative{CharSet(), uint32_t(out_.code_.size())};
      if (first_of(child, alternative.first))
        alternative.first = any();
      emit(child);
      push(Regex::Op::Match);
      const uint32_t bit = 1u << out_.alternatives_.size();
      for (uint32_t c = 0; c < 128; ++c)
        if (alternative.first.contains(c))
          out_.ascii_[c] |= bit;
      out_.alternatives_.push_back(std::move(alternative));
    }
  }

private:
  [[noreturn]] void fail(const char *what) const {
    throw Fault("pre-tokenizer pattern: " + std::string(what) + " at " + std::to_string(at_) +
                " in " + std::string(pattern_));
  }
  bool more() const { return at_ < pattern_.size(); }
  bool accept(std::string_view s) {
    if (pattern_.substr(at_, s.size()) != s)
      return false;
    at_ += s.size();
    return true;
  }
  uint32_t next() {
    if (!more())
      fail("the end");
    unsigned length = 0;
    const uint32_t cp = decode_valid(pattern_.data() + at_, length);
    at_ += length;
    return cp;
  }
  static CharSet any() {
    CharSet set;
    set.complement();
    return set;
  }

  // --- parsing ---
  Node choice() {
    Node node{Node::Choice, 0, 0, 0, false, {}};
    do
      node.children.push_back(sequence());
    while (accept("|"));
    return node.children.size() == 1 ? std::move(node.children[0]) : std::move(node);
  }
  Node sequence() {
    Node node{Node::Sequence, 0, 0, 0, false, {}};
    while (more() && pattern_[at_] != '|' && pattern_[at_] != ')')
      node.children.push_back(item());
    return node;
  }
  Node item() {
    Node inner = atom();
    uint32_t least = 1, most = 1;
    if (accept("?"))
      least = 0;
    else if (accept("*"))
      least = 0, most = Regex::kMany;
    else if (accept("+"))
      most = Regex::kMany;
    else if (accept("{")) {
      least = most = number();
      if (accept(","))
        most = number();
      if (!accept("}"))
        fail("no }");
    } else
      return inner;
    const bool possessive = accept("+");
    return Node{Node::Repeat, 0, least, most, possessive, {std::move(inner)}};
  }
  uint32_t number() {
    uint32_t value = 0;
    while (more() && pattern_[at_] >= '0' && pattern_[at_] <= '9')
      value = value * 10 + uint32_t(pattern_[at_++] - '0');
    return value;
  }
  Node atom() {
    if (accept("(?!"))
      return look(Node::NotAhead);
    if (accept("(?="))
      return look(Node::Ahead);
    if (accept("(?i:")) {
      const bool outer = std::exchange(fold_, true);
      Node node = group();
      fold_ = outer;
      return node;
    }
    if (accept("(?:") || accept("("))
      return group();
    return Node{Node::Set, intern(set()), 0, 0, false, {}};
  }
  Node group() {
    Node node = choice();
    if (!accept(")"))
      fail("no )");
    return node;
  }
  Node look(Node::Kind kind) {
    const uint32_t id = intern(set());
    if (!accept(")"))
      fail("look-ahead over more than one set");
    return Node{kind, id, 0, 0, false, {}};
  }
  CharSet set() {
    if (accept("["))
      return bracket();
    CharSet set;
    if (escape_set(set))
      return set;
    literal(set, character());
    return set;
  }
  void literal(CharSet &set, uint32_t cp) {
    set.add(cp, cp);
    if (!fold_)
      return;
    const uint32_t low = cp | 0x20;
    if (low >= 'a' && low <= 'z')
      set.add(low, low), set.add(low - 32, low - 32);
    if (low == 's')
      set.add(0x17F, 0x17F); // the two simple case folds from outside ASCII
    if (low == 'k')
      set.add(0x212A, 0x212A);
  }
  CharSet bracket() {
    const bool negated = accept("^");
    CharSet all;
    bool intersecting = false;
    CharSet left;
    while (!accept("]")) {
      if (accept("&&")) {
        if (intersecting)
          fail("a second &&");
        intersecting = true;
        left = std::exchange(all, CharSet());
      } else if (accept("[")) {
        all.unite(bracket());
      } else if (CharSet part; escape_set(part)) {
        all.unite(part);
      } else {
        const uint32_t first = character();
        if (more() && pattern_[at_] == '-' && pattern_.substr(at_, 2) != "-]") {
          ++at_;
          all.add(first, character());
        } else
          literal(all, first);
      }
    }
    if (intersecting)
      all.intersect(left);
    if (negated)
      all.complement();
    return all;
  }
  bool escape_set(CharSet &set) {
    if (accept("\\s"))
      set = CharSet::of_property(kWhitespace);
    else if (accept("\\S"))
      set = CharSet::of_property(kWhitespace), set.complement();
    else if (accept("\\d"))
      set = CharSet::of_categories(bit(Nd));
    else if (accept("\\p{")) {
      const size_t close = pattern_.find('}', at_);
      if (close == std::string_view::npos)
        fail("no }");
      const std::string_view name = pattern_.substr(at_, close - at_);
      at_ = close + 1;
      static constexpr std::pair<std::string_view, uint32_t> kNames[] = {
          {"L", kLetters}, {"M", kMarks},   {"N", kNumbers}, {"P", kPunctuation},
          {"S", kSymbols}, {"Lu", bit(Lu)}, {"Ll", bit(Ll)}, {"Lt", bit(Lt)},
          {"Lm", bit(Lm)}, {"Lo", bit(Lo)}, {"Nd", bit(Nd)}};
      if (name == "Han")
        return set = CharSet::of_property(kHan), true;
      for (const auto &[known, mask] : kNames)
        if (known == name)
          return set = CharSet::of_categories(mask), true;
      fail("an unknown property");
    } else
      return false;
    return true;
  }
  uint32_t character() {
    const uint32_t cp = next();
    if (cp != '\\')
      return cp;
    const uint32_t escaped = next();
    if (escaped == 'r')
      return '\r';
    if (escaped == 'n')
      return '\n';
    if (escaped == 't')
      return '\t';
    if (escaped == 'x' && accept("{")) {
      uint32_t value = 0;
      for (uint32_t digit; (digit = next()) != '}';)
        value = value * 16 + (digit <= '9' ? digit - '0' : (digit | 0x20) - 'a' + 10);
      return value;
    }
    if ((escaped | 0x20) >= 'a' && (escaped | 0x20) <= 'z')
      fail("an unknown escape");
    return escaped;
  }
  uint32_t intern(CharSet set) {
    out_.sets_.push_back(std::move(set));
    return uint32_t(out_.sets_.size() - 1);
  }

  // --- emitting ---
  void push(Regex::Op op, uint32_t set = 0, uint32_t x = 0, uint32_t y = 0) {
    out_.code_.push_back({op, set, x, y});
  }
  uint32_t here() const { return uint32_t(out_.code_.size()); }
  void emit(const Node &node) {
    using Op = Regex::Op;
    switch (node.kind) {
    case Node::Set:
      return push(Op::One, node.set);
    case Node::Ahead:
      return push(Op::Ahead, node.set);
    case Node::NotAhead:
      return push(Op::NotAhead, node.set);
    case Node::Sequence:
      for (const Node &child : node.children)
        emit(child);
      return;
    case Node::Choice: {
      std::vector<uint32_t> jumps;
      for (size_t i = 0; i + 1 < node.children.size(); ++i) {
        const uint32_t split = here();
        push(Op::Split, 0, split + 1);
        emit(node.children[i]);
        jumps.push_back(here());
        push(Op::Jump);
        out_.code_[split].y = here();
      }
      emit(node.children.back());
      for (const uint32_t jump : jumps)
        out_.code_[jump].x = here();
      return;
    }
    case Node::Repeat:
      return repeat(node);
    }
  }
  void repeat(const Node &node) {
    using Op = Regex::Op;
    const Node &inner = node.children[0];
    if (inner.kind == Node::Set)
      return push(node.possessive ? Op::SpanPossessive : Op::Span, inner.set, node.least,
                  node.most);
    for (uint32_t i = 0; i < node.least; ++i)
      emit(inner);
    if (node.most == Regex::kMany) {
      CharSet ignored;
      if (first_of(inner, ignored))
        fail("a loop over what may be empty");
      const uint32_t slot = node.possessive ? out_.registers_++ : 0;
      if (out_.registers_ > 4)
        fail("more than 4 possessive groups");
      const uint32_t loop = here();
      if (node.possessive)
        push(Op::Mark, slot);
      const uint32_t split = here();
      push(Op::Split, 0, split + 1);
      emit(inner);
      if (node.possessive)
        push(Op::Cut, slot);
      push(Op::Jump, 0, loop);
      out_.code_[split].y = here();
    } else {
      std::vector<uint32_t> splits;
      for (uint32_t i = node.least; i < node.most; ++i) {
        splits.push_back(here());
        push(Op::Split, 0, here() + 1);
        emit(inner);
      }
      for (const uint32_t split : splits)
        out_.code_[split].y = here();
    }
  }

  // Adds what a match of `node` can begin with; true if it can be empty.
  bool first_of(const Node &node, CharSet &first) const {
    switch (node.kind) {
    case Node::Set:
      return first.unite(out_.sets_[node.set]), false;
    case Node::Ahead:
    case Node::NotAhead:
      return true;
    case Node::Sequence:
      for (const Node &child : node.children)
        if (!first_of(child, first))
          return false;
      return true;
    case Node::Choice: {
      bool empty = false;
      for (const Node &child : node.children)
        empty |= first_of(child, first);
      return empty;
    }
    case Node::Repeat:
      return first_of(node.children[0], first) || node.least == 0;
    }
    return true;
  }

  std::string_view pattern_;
  Regex &out_;
  size_t at_ = 0;
  bool fold_ = false;
};

Regex::Regex(std::string_view pattern) { RegexCompiler(pattern, *this).run(); }

} // namespace insula::tok
