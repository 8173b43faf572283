// What this level could do at most: int8 products of its own dot, operands in the nearest cache,
// no scales, and twelve sums of which none waits for another. The limit that prefill is held to.
#include <cstring>

namespace {

uint64_t peak(size_t steps) {
  alignas(64) uint8_t w[2 * sizeof(V::B)];
  alignas(64) uint32_t x[8]; // six are used; a load may take four
  std::memset(w, 1, sizeof w);
  std::memset(x, 1, sizeof x);
  V::D d[12]; // counted out everywhere, or it stays in memory
  unroll<12>([&](auto ic) __attribute__((always_inline)) { d[decltype(ic)::value] = V::dzero(); });
  for (size_t s = 0; s < steps; ++s) {
    // As if they were new each time, or the products would be taken out of the loop.
    __asm__ volatile("" : : "r"(w), "r"(x) : "memory");
    const V::B w0 = V::loadb(w), w1 = V::loadb(w + sizeof(V::B));
    unroll<6>([&](auto ic) __attribute__((always_inline)) {
      constexpr int i = decltype(ic)::value;
      d[2 * i] = V::dot<i>(d[2 * i], w0, x);
      d[2 * i + 1] = V::dot<i>(d[2 * i + 1], w1, x);
    });
  }
  V::I sum = V::izero();
  unroll<12>([&](auto ic) __attribute__((always_inline)) {
    sum = V::iadd(sum, V::widen(d[decltype(ic)::value]));
  });
  __asm__ volatile("" : : "m"(sum)); // somebody wants to know
  return steps * 12 * sizeof(V::B);
}

} // namespace
