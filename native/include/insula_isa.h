// Which instruction-set levels this build and this processor have, and which one is chosen.
#pragma once
#include <string>
#include <vector>

namespace insula {

struct KernelTable;

struct Level {
  const char *name;
  bool available;
  const KernelTable *table;
  std::string missing; // what the processor lacks, for messages
};

// Every level of this build, the fastest first.
const std::vector<Level> &levels();

// One more level, the first of all: a test's own. Not while levels are in use.
void add_level(const Level &level);

// The table for `name`, or for nullptr/"" the fastest available one.
// On failure returns nullptr and says in `error` what was found and what is allowed.
const KernelTable *select_level(const char *name, std::string *error);

} // namespace insula
