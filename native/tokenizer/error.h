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
      : std::runtime_error(message), unsupported(unsupported) {}
  bool unsupported;
};

} // namespace insula::tok
