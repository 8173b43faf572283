// How many int8 operations a second the processor can do, whatever the memory.
#pragma once

namespace insula {

struct KernelTable;

// 1e9 operations a second that `threads` threads reach together, a multiply-add being two.
double int8_peak(const KernelTable &table, int threads);

} // namespace insula
