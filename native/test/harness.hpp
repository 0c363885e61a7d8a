// A test harness in one header: a test is a claim in a sentence, a check prints what it saw.
//
//     #include "test/harness.hpp"
//     TEST("a freed granule is handed out again") {
//       CHECK(partition.free(block).ok());
//       CHECK_EQ(partition.allocate(16).value().granule, block.granule);
//     }
//
// Including it gives the executable its main(): it runs every test, or those whose claim contains argv[1], and exits
// with 1 when one failed or when the filter matched none. A failed CHECK lets the test go on (it returns false, so
// `if (!CHECK(x)) return;` stops where going on would crash). CHECK may be used from several threads.
//
// Rejected: gtest and Catch2, which would be the only C++ packages that building drust has to find.
#pragma once

#include <atomic>
#include <chrono>
#include <concepts>
#include <cstdio>
#include <cstring>
#include <functional>
#include <sstream>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace drust::test {

struct Case {
  const char* claim;
  const char* file;
  int line;
  void (*body)();
};

// Filled by static initialisers, before main() and any thread; read only by main().
inline std::vector<Case>& cases() {
  static std::vector<Case> all;
  return all;
}

// Atomic: a test's own threads may check as well.
inline std::atomic<int>& failures() {
  static std::atomic<int> count{0};
  return count;
}

struct Registration {
  Registration(const char* claim, const char* file, int line, void (*body)()) {
    cases().push_back({claim, file, line, body});
  }
};

// What a value looks like in a failure: streamed where it can be, an enum's number, else its size.
template <typename T>
std::string shown(const T& value) {
  std::ostringstream out;
  if constexpr (std::is_same_v<T, bool>) {
    out << (value ? "true" : "false");
  } else if constexpr (std::is_enum_v<T>) {
    out << "enum " << +static_cast<std::underlying_type_t<T>>(value);
  } else if constexpr (std::integral<T> && sizeof(T) == 1) {
    out << +value;
  } else if constexpr (requires { out << value; }) {
    out << value;
  } else {
    out << '<' << sizeof(T) << " bytes>";
  }
  return out.str();
}

// Integers of different signs compare by value; everything else by its own ==.
template <typename A, typename B>
bool equal(const A& a, const B& b) {
  constexpr bool integers = std::integral<A> && std::integral<B> && !std::is_same_v<A, bool> &&
                            !std::is_same_v<B, bool> && !std::is_same_v<A, char> && !std::is_same_v<B, char>;
  if constexpr (integers) {
    return std::cmp_equal(a, b);
  } else {
    return a == b;
  }
}

inline bool report(bool passed, const char* file, int line, const std::string& text) {
  if (!passed) {
    failures().fetch_add(1, std::memory_order_relaxed);
    std::fprintf(stderr, "%s:%d: failed: %s\n", file, line, text.c_str());
  }
  return passed;
}

template <typename A, typename B>
bool report_equal(const A& a, const B& b, const char* file, int line, const char* text) {
  if (equal(a, b)) return true;
  return report(false, file, line, std::string(text) + "\n    left:  " + shown(a) + "\n    right: " + shown(b));
}

inline int run_all(const char* filter) {
  int ran = 0;
  int failed = 0;
  for (const Case& test : cases()) {
    if (filter != nullptr && std::strstr(test.claim, filter) == nullptr) continue;
    ++ran;
    const int before = failures().load(std::memory_order_relaxed);
    const auto start = std::chrono::steady_clock::now();
    test.body();
    const double elapsed_ms =
        std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
    const bool passed = failures().load(std::memory_order_relaxed) == before;
    if (!passed) ++failed;
    std::printf("%s  %s (%.1f ms)\n", passed ? "ok  " : "FAIL", test.claim, elapsed_ms);
    if (!passed) std::printf("      at %s:%d\n", test.file, test.line);
    std::fflush(stdout);
  }
  std::printf("%d of %d claims hold\n", ran - failed, ran);
  if (ran == 0) std::fprintf(stderr, "no claim contains '%s'\n", filter != nullptr ? filter : "");
  return failed == 0 && ran > 0 ? 0 : 1;
}

}  // namespace drust::test

#define DRUST_JOIN_(a, b) a##b
#define DRUST_JOIN(a, b) DRUST_JOIN_(a, b)
#define TEST(claim)                                                                   \
  static void DRUST_JOIN(test_body_, __LINE__)();                                     \
  static const ::drust::test::Registration DRUST_JOIN(test_entry_, __LINE__)(         \
      claim, __FILE__, __LINE__, DRUST_JOIN(test_body_, __LINE__));                   \
  static void DRUST_JOIN(test_body_, __LINE__)()
#define CHECK(...) ::drust::test::report(static_cast<bool>(__VA_ARGS__), __FILE__, __LINE__, #__VA_ARGS__)
#define CHECK_EQ(a, b) ::drust::test::report_equal((a), (b), __FILE__, __LINE__, #a " == " #b)

int main(int argc, char** argv) { return ::drust::test::run_all(argc > 1 ? argv[1] : nullptr); }
