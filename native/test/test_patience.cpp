// How long a wait looks before it sleeps.
#include "base/patience.hpp"

#include <chrono>

#include "test/harness.hpp"

using drust::Patience;

namespace {

// How often a wait in vain looked.
int vain_looks(Patience& patience) {
  int looks = 0;
  CHECK(!patience.wait([&] {
    ++looks;
    return false;
  }));
  return looks;
}

}  // namespace

TEST("what is there at the first look is found by it") {
  Patience patience;
  int looks = 0;
  const bool is_over = patience.wait([&] { return ++looks == 1; });
  CHECK(is_over || drust::Patience::is_alone());
  CHECK(looks <= 1);
}

TEST("who waits in vain soon looks no more, but tries again now and then") {
  if (Patience::is_alone()) return;
  Patience patience;
  int first = vain_looks(patience);
  CHECK(first > 0);
  int waits = 1;
  while (vain_looks(patience) > 0) ++waits;
  CHECK(waits < 8);
  int tried_again = 0;
  for (int wait = 0; wait < 320; ++wait) tried_again += vain_looks(patience) > 0 ? 1 : 0;
  CHECK(tried_again >= 9);
  CHECK(tried_again <= 16);
}

TEST("one success restores patience") {
  if (Patience::is_alone()) return;
  Patience patience;
  while (vain_looks(patience) > 0) {
  }
  int tries = 0;
  while (!patience.wait([] { return true; })) CHECK(++tries < 100);
  CHECK(vain_looks(patience) > 0);
}

TEST("a look lasts as long as the wake of the other side may take, also after one in vain") {
  if (Patience::is_alone()) return;
  using std::chrono::steady_clock;
  Patience patience;
  for (int wait = 0; wait < 3; ++wait) {
    const auto start = steady_clock::now();
    CHECK(vain_looks(patience) > 0);
    CHECK(steady_clock::now() - start >= std::chrono::microseconds(drust::kPatienceUs));
  }
}

TEST("after a pause that ended all looks the next tries come soon, then ever more seldom") {
  if (Patience::is_alone()) return;
  Patience patience;
  while (vain_looks(patience) > 0) {
  }
  int before_first = 1;
  auto start = std::chrono::steady_clock::now();
  while (vain_looks(patience) == 0) {
    ++before_first;
    start = std::chrono::steady_clock::now();
  }
  CHECK(std::chrono::steady_clock::now() - start >= std::chrono::microseconds(drust::kPatienceUsMax));
  int before_second = 1;
  while (vain_looks(patience) == 0) ++before_second;
  CHECK(before_first <= 4);
  CHECK(before_second > before_first);
}
