// What tiles_amx.h does, in plain code: Intel's definition of TDPBSSD and of the tile loads
// (Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2, "Intel AMX").
#pragma once
#include <cstdint>
#include <cstring>

namespace {

struct Tile {
  int rows, bytes;
  int8_t data[16][64];
};
thread_local Tile tiles[8];

struct T {
  static void configure(int rows, int words) {
    for (int t = 0; t < 8; ++t) {
      const bool a = t == 4 || t == 5, b = t >= 6;
      tiles[t].bytes = a ? words * 4 : 64;
      tiles[t].rows = b ? words : rows;
      std::memset(tiles[t].data, 0, sizeof tiles[t].data);
    }
  }
  static void release() { std::memset(tiles, 0, sizeof tiles); }
  template <int t> static void zero() { std::memset(tiles[t].data, 0, sizeof tiles[t].data); }
  template <int t> static void load(const void *p, size_t stride) {
    for (int r = 0; r < tiles[t].rows; ++r)
      std::memcpy(tiles[t].data[r],
                  static_cast<const uint8_t *>(p) + static_cast<size_t>(r) * stride,
                  static_cast<size_t>(tiles[t].bytes));
  }
  template <int c, int a, int b> static void dot() {
    for (int m = 0; m < tiles[c].rows; ++m)
      for (int k = 0; k < tiles[a].bytes / 4; ++k)
        for (int n = 0; n < 16; ++n) {
          int32_t s;
          std::memcpy(&s, &tiles[c].data[m][4 * n], 4);
          for (int i = 0; i < 4; ++i)
            s += int32_t{tiles[a].data[m][4 * k + i]} * tiles[b].data[k][4 * n + i];
          std::memcpy(&tiles[c].data[m][4 * n], &s, 4);
        }
  }
  template <int t> static void store(void *p) {
    for (int r = 0; r < tiles[t].rows; ++r)
      std::memcpy(static_cast<uint8_t *>(p) + r * 64, tiles[t].data[r], 64);
  }
};

} // namespace
