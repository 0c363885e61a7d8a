// Shards of a Dict: what they hold against a plain map, readers while others write, and kills at each step.
#include <csignal>
#include <sys/mman.h>
#include <sys/wait.h>

#include <atomic>
#include <cstring>
#include <map>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "base/kill_point.hpp"
#include "sync/bury.hpp"
#include "sync/dict.hpp"
#include "test/harness.hpp"
#include "test/heap_fixture.hpp"

using namespace drust;
using namespace drust::sync;
using test::Host;

namespace {

using When = Shard::When;

struct Made {
  GlobalPointer object;
  GlobalPointer hold;
  ShardWords* words = nullptr;
  explicit Made(Host& host) {
    const auto made = make<ShardWords>(*host.heap, Kind::shard, object);
    ensure(made.ok(), "no shard to test with");
    hold = made.value();
    words = find<ShardWords>(*host.partition, object);
  }
};

std::span<const std::byte> bytes_in(const std::string& text) { return std::as_bytes(std::span(text)); }

// `mask`: of the hash's first half; without it, keys share that much of their way.
KeyHash hash_of(const std::string& key, std::uint64_t mask = ~0ULL) {
  const KeyHash hash = hash_key({1, 2}, bytes_in(key));
  return {hash.high & mask, hash.low};
}

Item item_of(const KeyHash& hash, const std::string& key, const std::string& value) {
  Item item;
  item.head.hash = hash;
  item.head.key_bytes = static_cast<std::uint32_t>(key.size());
  item.head.value_bytes = static_cast<std::uint32_t>(value.size());
  item.key = bytes_in(key);
  item.value = bytes_in(value);
  return item;
}

Who self(const heap::Heap& heap) { return Who::make(heap.partition().server(), heap.process()); }

// The value of a key; "-" if there is none.
std::string value_in(const Shard& shard, const KeyHash& hash, Colour* version = nullptr) {
  std::vector<std::byte> room;
  ItemHead head;
  const bool is_there = shard.find(hash, [&](const ItemHead& found) {
    head = found;
    room.resize(std::size_t{found.key_bytes} + found.value_bytes);
    return room.data();
  });
  if (version != nullptr) *version = is_there ? head.version : 0;
  return is_there ? std::string(reinterpret_cast<const char*>(room.data()) + head.key_bytes, head.value_bytes) : "-";
}

std::map<std::string, std::string> all_of(const Shard& shard, std::uint64_t bytes_max) {
  std::map<std::string, std::string> all;
  std::optional<KeyHash> from = KeyHash{};
  while (from) {
    std::vector<std::byte> chunk;
    from = shard.scan(*from, bytes_max, chunk);
    std::span<const std::byte> left = chunk;
    while (const std::optional<Item> item = take_item(left)) {
      const bool is_new = all.emplace(std::string(reinterpret_cast<const char*>(item->key.data()), item->key.size()),
                                      std::string(reinterpret_cast<const char*>(item->value.data()), item->value.size()))
                              .second;
      CHECK(is_new);
    }
  }
  return all;
}

}  // namespace

TEST("a shard holds what a map holds, however its keys meet, and leaves nothing") {
  for (const std::uint64_t mask : {~0ULL, 0xff00'0000'0000'0000ULL, 0ULL}) {
    Host host;
    const std::uint64_t before = host.partition->live_blocks();
    Made made(host);
    Shard shard(*host.heap, made.object, *made.words);
    std::map<std::string, std::string> map;
    std::map<std::string, Colour> versions;
    std::mt19937 draw(7);
    for (int step = 0; step < 6000; ++step) {
      const std::string key = std::to_string(draw() % 700);
      const std::string value = key + std::string(draw() % 200, 'v');
      const KeyHash hash = hash_of(key, mask);
      const bool is_there = map.contains(key);
      std::vector<std::byte> gone;
      switch (draw() % 6) {
        case 0: {
          const auto outcome = shard.remove(self(*host.heap), hash, When::always, 0, gone, deadline_in(0));
          CHECK_EQ(outcome.is_done, is_there);
          std::span<const std::byte> left = gone;
          const auto item = take_item(left);
          if (is_there && CHECK(item.has_value())) CHECK(std::memcmp(item->value.data(), map[key].data(), map[key].size()) == 0);
          map.erase(key);
          break;
        }
        case 1: {
          const auto outcome = shard.put(self(*host.heap), item_of(hash, key, value), When::absent, 0, deadline_in(0));
          CHECK_EQ(outcome.is_done, !is_there);
          if (!is_there) map[key] = value;
          break;
        }
        case 2: {
          Colour version = 0;
          static_cast<void>(value_in(shard, hash, &version));
          CHECK(!shard.put(self(*host.heap), item_of(hash, key, value), When::version, version + 1, deadline_in(0)).is_done);
          CHECK(shard.put(self(*host.heap), item_of(hash, key, value), When::version, version, deadline_in(0)).is_done);
          map[key] = value;
          break;
        }
        case 3: {
          const std::string expected = is_there && draw() % 2 == 0 ? map[key] : "none";
          const auto outcome = shard.put_if_equal(self(*host.heap), item_of(hash, key, expected), item_of(hash, key, value),
                                                  gone, deadline_in(0));
          CHECK_EQ(outcome.is_done, is_there && map[key] == expected);
          CHECK_EQ(gone.empty(), outcome.is_done || !is_there);
          if (outcome.is_done) map[key] = value;
          break;
        }
        default:
          CHECK(shard.put(self(*host.heap), item_of(hash, key, value), When::always, 0, deadline_in(0)).is_done);
          map[key] = value;
      }
      CHECK_EQ(value_in(shard, hash), map.contains(key) ? map[key] : "-");
    }
    CHECK_EQ(shard.count(), map.size());
    CHECK(all_of(shard, 1000) == map);
    CHECK(all_of(shard, 1ULL << 30) == map);
    shard.clear();
    CHECK_EQ(host.partition->live_blocks(), before + 2);  // the object and its hold
  }
}

TEST("readers see whole values, and scans what stays, while others write") {
#if !defined(__SANITIZE_THREAD__)  // a reader looks at bytes that may be written, and forgets them then
  Host host;
  Made made(host);
  std::atomic<bool> is_over{false};
  std::vector<std::thread> threads;
  Shard shard(*host.heap, made.object, *made.words);
  for (int key = 0; key < 50; ++key) {
    const std::string name = "stays" + std::to_string(key);
    CHECK(shard.put(self(*host.heap), item_of(hash_of(name), name, "x"), When::always, 0, deadline_in(100)).is_done);
  }
  for (int writer = 0; writer < 2; ++writer) {
    threads.emplace_back([&, writer] {
      std::mt19937 draw(static_cast<unsigned>(writer));
      std::vector<std::byte> gone;
      for (int step = 0; step < 20000; ++step) {
        const std::string key = std::to_string(draw() % 100);
        const std::string value(1 + draw() % 300, static_cast<char>('a' + draw() % 26));
        if (draw() % 3 == 0) {
          gone.clear();
          CHECK(shard.remove(self(*host.heap), hash_of(key), When::always, 0, gone, deadline_in(10000)).status.ok());
        } else {
          CHECK(shard.put(self(*host.heap), item_of(hash_of(key), key, value), When::always, 0, deadline_in(10000)).is_done);
        }
      }
      is_over.store(true);
    });
  }
  std::uint64_t torn = 0;
  std::mt19937 draw(99);
  while (!is_over.load()) {
    const std::string value = value_in(shard, hash_of(std::to_string(draw() % 100)));
    torn += value.find_first_not_of(value[0]) == std::string::npos ? 0 : 1;
    int stays = 0;
    for (const auto& [key, seen] : all_of(shard, 2000)) {
      stays += key.starts_with("stays") ? 1 : 0;
      torn += seen.find_first_not_of(seen[0]) == std::string::npos ? 0 : 1;
    }
    CHECK_EQ(stays, 50);
  }
  for (std::thread& thread : threads) thread.join();
  CHECK_EQ(torn, 0U);
  CHECK_EQ(all_of(shard, 1000).size(), shard.count());
#endif
}

#if DRUST_TEST_FORKS

namespace {

// In a child: puts and removes keys that meet, for ever. Before each step it says which, after it that it is done.
struct Log {
  std::atomic<std::uint64_t> begun;
  std::atomic<std::uint64_t> done;
};
constexpr std::uint64_t kKeys = 40;
constexpr std::uint64_t kMask = 0xff00'0000'0000'0000ULL;
bool is_removal(std::uint64_t step) { return step % 3 == 2; }
std::string key_of(std::uint64_t step) { return std::to_string(is_removal(step) ? step / 2 % kKeys : step % kKeys); }

[[noreturn]] void scribble(int memfd, const GlobalPointer& object, std::uint32_t point, std::uint32_t nth, int ready,
                           Log& log) {
  auto attached = heap::Partition::attach(memfd);
  if (!attached.ok()) ::_exit(2);
  heap::Partition& partition = *attached.value();
  const auto process = partition.claim_process(heap::ProcessKind::worker, static_cast<std::uint32_t>(::getpid()));
  if (!process.ok()) ::_exit(3);
  heap::Heap heap(partition, process.value());
  Shard shard(heap, object, *find<ShardWords>(partition, object));
  static_cast<void>(!::write(ready, &process.value(), sizeof process.value()));
  arm_kill_point(point, nth, KillAction::kill);
  for (std::uint64_t step = 1;; ++step) {
    log.begun.store(step);
    const std::string key = key_of(step);
    std::vector<std::byte> gone;
    if (is_removal(step)) {
      static_cast<void>(shard.remove(self(heap), hash_of(key, kMask), When::always, 0, gone, deadline_in(100)));
    } else {
      static_cast<void>(shard.put(self(heap), item_of(hash_of(key, kMask), key, std::to_string(step)), When::always, 0,
                                  deadline_in(100)));
    }
    log.done.store(step);
  }
}

}  // namespace

TEST("a kill at any step leaves a shard that works, each step done or not, and nothing that nobody owns") {
  void* page = ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  ensure(page != MAP_FAILED, "no page");
  for (std::uint32_t point = 0; point < kKillPoints.size(); ++point) {
    if (!kKillPoints[point].starts_with("shared.dict.")) continue;
    for (std::uint32_t nth = 1; nth < 60; nth += 4) {
      auto* log = new (page) Log{};
      Host host;
      const std::uint64_t before = host.partition->live_blocks();
      Made made(host);
      Shard shard(*host.heap, made.object, *made.words);
      std::vector<GlobalPointer> remote;
      int ready[2];
      ensure(::pipe(ready) == 0, "no pipe");
      const pid_t pid = ::fork();
      if (pid == 0) scribble(host.partition->memfd(), made.object, point, nth, ready[1], *log);
      heap::ProcessId process;
      ensure(::read(ready[0], &process, sizeof process) == sizeof process, "a child is not ready");
      int status = 0;
      CHECK(::waitpid(pid, &status, 0) == pid && WIFSIGNALED(status));
      host.partition->declare_dead(process);
      const Who dead = Who::make(host.partition->server(), process);
      bury_everywhere(*host.heap, [dead](Who who) { return who == dead; }, process);
      host.heap->adopt(process, &remote);
      host.heap->free_owned_by(process, remote);
      host.partition->release_process(process);
      ::close(ready[0]);
      ::close(ready[1]);
      std::map<std::string, std::string> sure;
      for (std::uint64_t step = 1; step <= log->done.load(); ++step) {
        if (is_removal(step)) sure.erase(key_of(step));
        else sure[key_of(step)] = std::to_string(step);
      }
      std::map<std::string, std::string> perhaps = sure;
      if (const std::uint64_t step = log->begun.load(); step > log->done.load()) {
        if (is_removal(step)) perhaps.erase(key_of(step));
        else perhaps[key_of(step)] = std::to_string(step);
      }
      const std::map<std::string, std::string> left = all_of(shard, 1000);
      if (!CHECK(left == sure || left == perhaps) || !CHECK_EQ(shard.count(), left.size()))
        std::printf("at %s, %u\n", kKillPoints[point].data(), nth);
      for (std::uint64_t key = 0; key < kKeys; ++key) {
        const std::string name = std::to_string(key);
        CHECK(shard.put(self(*host.heap), item_of(hash_of(name, kMask), name, "new"), When::always, 0, deadline_in(100)).is_done);
        CHECK_EQ(value_in(shard, hash_of(name, kMask)), "new");
      }
      shard.clear();
      if (!CHECK_EQ(host.partition->live_blocks(), before + 2)) std::printf("at %s, %u\n", kKillPoints[point].data(), nth);
    }
  }
  ::munmap(page, 4096);
}

#endif
