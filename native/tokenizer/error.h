// How the tokenizer room fails: a Fault with one clear line. `unsupported` marks what is
// well-formed but not done here (an unknown pre-tokenizer, a tokenizer family without an
// implementation).
#pragma once
#include <stdexcept>
#include <string>

namespace insula::tok {

class Fault : public std::runtime_error {
public:
  explicit Fault(const std::string &message, bool unsupported = false)
      : std::runtime_error(printable(message)), unsupported(unsupported) {}
  bool unsupported;

private:
  // Messages quote text of the file: no zero byte may cut them short, and nothing in them may
  // move a terminal's cursor.
  static std::string printable(const std::string &message) {
    std::string out;
    for (const char c : message) {
      if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F) {
        constexpr char kHex[] = "0123456789ABCDEF";
        out.append("\\x").append(1, kHex[c >> 4]).append(1, kHex[c & 15]);
      } else {
        out += c;
      }
    }
    return out;
  }
};

} // namespace insula::tok
