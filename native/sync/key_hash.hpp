// Where a key of a Dict belongs: SipHash-1-3 of its canonical bytes, 128 bits, keyed by a secret of the Dict.
//
// The same in every process (Python's own hash of a str is not), and nobody who does not know the secret can choose
// keys that meet. 128 bits: that two keys of one Dict have the same hash is not to be expected in the life of any.
// Source: Aumasson and Bernstein, SipHash: a fast short-input PRF (2012), and their 128-bit variant.
#pragma once

#include <bit>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

namespace drust::sync {

struct KeyHash {
  std::uint64_t high = 0;
  std::uint64_t low = 0;
  friend constexpr auto operator<=>(const KeyHash&, const KeyHash&) noexcept = default;
};

struct HashSecret {
  std::uint64_t first = 0;
  std::uint64_t second = 0;
};

class SipState {
 public:
  explicit SipState(HashSecret secret) noexcept
      : a_(secret.first ^ 0x736f6d6570736575ULL),
        b_(secret.second ^ 0x646f72616e646f6dULL ^ 0xee),
        c_(secret.first ^ 0x6c7967656e657261ULL),
        d_(secret.second ^ 0x7465646279746573ULL) {}
  void take(std::uint64_t word) noexcept {
    d_ ^= word;
    turn();
    a_ ^= word;
  }
  KeyHash finish() noexcept {
    c_ ^= 0xee;
    const std::uint64_t first = squeeze();
    b_ ^= 0xdd;
    return {first, squeeze()};
  }

 private:
  void turn() noexcept {
    a_ += b_;
    b_ = std::rotl(b_, 13) ^ a_;
    a_ = std::rotl(a_, 32);
    c_ += d_;
    d_ = std::rotl(d_, 16) ^ c_;
    a_ += d_;
    d_ = std::rotl(d_, 21) ^ a_;
    c_ += b_;
    b_ = std::rotl(b_, 17) ^ c_;
    c_ = std::rotl(c_, 32);
  }
  std::uint64_t squeeze() noexcept {
    for (int round = 0; round < 3; ++round) turn();
    return a_ ^ b_ ^ c_ ^ d_;
  }
  std::uint64_t a_, b_, c_, d_;
};

[[nodiscard]] inline KeyHash hash_key(HashSecret secret, std::span<const std::byte> key) noexcept {
  static_assert(std::endian::native == std::endian::little);
  SipState state(secret);
  std::size_t done = 0;
  for (; done + 8 <= key.size(); done += 8) {
    std::uint64_t word = 0;
    std::memcpy(&word, key.data() + done, 8);
    state.take(word);
  }
  std::uint64_t last = static_cast<std::uint64_t>(key.size()) << 56;
  if (done < key.size()) std::memcpy(&last, key.data() + done, key.size() - done);
  state.take(last);
  return state.finish();
}

}  // namespace drust::sync
