// The partition: mapping, looking up hostile addresses, segments, process slots, counters, endpoints, memory
// limits.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <filesystem>
#include <fstream>
#include <random>
#include <sys/mman.h>
#include <sys/stat.h>
#include <thread>

#include "base/limits.hpp"
#include "heap/layout.hpp"
#include "heap/memory_room.hpp"
#include "heap/segments.hpp"
#include "test/harness.hpp"
#include "test/heap_fixture.hpp"

using namespace drust;
using namespace drust::heap;
using test::Host;
using test::make_block;

namespace {

// A table of its own beside a heap: what a second process would work with.
Segments segments_of(const Host& host) {
  return Segments(host.partition->writable(0), host.partition->memfd());
}

std::uint64_t backed_bytes(const Partition& partition) {
  struct stat file = {};
  ensure(::fstat(partition.memfd(), &file) == 0, "no fstat");
  return static_cast<std::uint64_t>(file.st_blocks) * 512;
}

}  // namespace

TEST("a partition attached a second time shows the same bytes, and its file cannot be cut") {
  Host host;
  const GlobalPointer block = make_block(*host.heap, 1000);
  auto attached = Partition::attach(::fcntl(host.partition->memfd(), F_DUPFD_CLOEXEC, 0));
  if (!CHECK(attached.ok())) return;
  Partition& second = *attached.value();
  CHECK_EQ(second.server(), 3U);
  CHECK_EQ(second.incarnation(), 7U);
  auto found = second.find(block.address, block.colour);
  if (!CHECK(found.ok())) return;
  found.value().buffer(0)[999] = std::byte{77};
  const std::byte* elsewhere = host.partition->readable(block.address.offset_bytes());
  CHECK(elsewhere[block.extent_bytes - 1] == std::byte{77});
  CHECK_EQ(host.partition->offset_of(elsewhere), block.address.offset_bytes());
  CHECK_EQ(second.offset_of(found.value().start()), block.address.offset_bytes());
  CHECK(::ftruncate(second.memfd(), 4096) != 0);
}

TEST("what is no partition, or another build's, is refused") {
  const int empty = ::memfd_create("other", MFD_CLOEXEC);
  CHECK(Partition::attach(empty).status().code() == Code::bad_request);
  Host host;
  auto& shared = *reinterpret_cast<SharedHeader*>(host.partition->writable(0));
  shared.layout ^= 1;
  CHECK(Partition::attach(::dup(host.partition->memfd())).status().code() == Code::version_mismatch);
  shared.layout ^= 1;
  CHECK(Partition::attach(::dup(host.partition->memfd())).ok());
  CHECK(Partition::create({.heap_bytes = 1000}).status().code() == Code::bad_request);
  CHECK(Partition::create({.heap_bytes = 2ULL << 40}).status().code() == Code::bad_request);
  CHECK(Partition::create({.incarnation = 0, .heap_bytes = 64 << 20}).status().code() == Code::bad_request);
  CHECK(Partition::create({.server = kServersMax, .heap_bytes = 64 << 20}).status().code() ==
        Code::bad_request);
}

TEST("no address that a peer may send finds anything but the block that begins there, nor backs any memory") {
  Host host;
  std::vector<GlobalPointer> blocks;
  for (const std::uint64_t bytes : {0ULL, 100ULL, 5000ULL, 60'000ULL, 300'000ULL})
    blocks.push_back(make_block(*host.heap, bytes));
  const GlobalPointer gone = make_block(*host.heap, 1'000'000);
  CHECK(host.heap->free_shallow(gone).ok());
  host.partition->trim(0);
  const std::uint64_t backed = backed_bytes(*host.partition);
  const auto code = [&](std::uint64_t raw) {
    const auto found = host.partition->find(Address(raw), kNoColour);
    return found.ok() ? Code::ok : found.status().code();
  };
  CHECK(code(gone.address.raw()) == Code::not_found);
  std::mt19937_64 random(5);
  const std::uint64_t server = Address::make(3, 0).raw();
  std::uint64_t hits = 0;
  for (int round = 0; round < 200'000; ++round) {
    const std::uint64_t bits = random();
    const std::uint64_t raw = round % 4 == 0 ? bits : server | (bits & ((1ULL << (12 + round % 25)) - 1));
    const bool exists =
        std::any_of(blocks.begin(), blocks.end(), [&](const auto& b) { return b.address.raw() == raw; });
    hits += exists ? 1U : 0U;
    if (!CHECK((code(raw) == Code::ok) == exists)) break;
  }
  for (const GlobalPointer& block : blocks) {
    CHECK(code(block.address.raw()) == Code::ok);
    for (const std::uint64_t step : {1ULL, 2ULL, 3ULL}) CHECK(code(block.address.raw() + step) != Code::ok);
    CHECK(code(block.address.raw() | (1ULL << 50)) == Code::not_found);
    CHECK(code(block.address.raw() ^ (1ULL << kGranuleBits)) == Code::not_found);
  }
  CHECK_EQ(backed_bytes(*host.partition), backed);
}

TEST("a freed run keeps some segments warm, gives the rest back, and trimming gives back those") {
  Host host(64ULL << 20, 2ULL << 20);
  const std::uint64_t before = backed_bytes(*host.partition);
  const GlobalPointer block = make_block(*host.heap, 16ULL << 20);
  CHECK(backed_bytes(*host.partition) >= before + (16U << 20));
  CHECK(host.heap->free_shallow(block).ok());
  CHECK_EQ(host.partition->usage().claimed_bytes, 0U);
  CHECK_EQ(host.partition->usage().warm_bytes, 2U << 20);
  CHECK_EQ(backed_bytes(*host.partition), before + (2U << 20));
  CHECK_EQ(host.partition->trim(1U << 20), 1U << 20);
  CHECK_EQ(host.partition->usage().warm_bytes, 1U << 20);
  CHECK_EQ(host.partition->trim(1U << 20), 0U);
  CHECK_EQ(host.partition->trim(0), 1U << 20);
  CHECK_EQ(backed_bytes(*host.partition), before);
}

TEST("warm segments are used before cold ones, whatever bytes they hold") {
  Host host(64ULL << 20, 8ULL << 20);
  const GlobalPointer first = make_block(*host.heap, 4ULL << 20);
  std::memset(host.partition->writable(first.address.offset_bytes()) + 64, 0xff,
              4U << 20);  // looks like colours
  CHECK(host.heap->free_shallow(first).ok());
  const std::uint64_t backed = backed_bytes(*host.partition);
  std::vector<GlobalPointer> blocks;
  for (int index = 0; index < 3000; ++index) blocks.push_back(make_block(*host.heap, 900));
  CHECK_EQ(host.partition->live_blocks(), 3000U);
  CHECK_EQ(backed_bytes(*host.partition), backed);
  for (const GlobalPointer& block : blocks) CHECK(host.heap->free_shallow(block).ok());
}

TEST("claims in two processes at once never overlap, and those that lost leave nothing behind") {
  Host host(32ULL << 20, 64ULL << 20);  // all of it warm soon, so that claiming costs nothing but the table
  std::vector<std::thread> threads;
  std::vector<std::vector<std::pair<std::uint64_t, std::uint64_t>>> held(4);
  for (std::uint32_t seed = 0; seed < 4; ++seed) {
    threads.emplace_back([&, seed, process = host.join()] {
      Segments segments = segments_of(host);
      std::mt19937 random(seed);
      for (int step = 0; step < 8'000; ++step) {
        // Small ones into the holes that the large ones find at the same time.
        const std::uint64_t length = seed % 2 == 0 ? 1 + random() % 3 : 20 + random() % 40;
        if (const auto head = segments.claim(process, SegmentKind::run, 0, length); head.ok()) {
          segments.settle(head.value());
          held[seed].emplace_back(head.value(), length);
        }
        while (held[seed].size() > (seed % 2 == 0 ? 20U : 3U)) {
          segments.take(held[seed].front().first, process);
          segments.give_back(held[seed].front().first, process);
          held[seed].erase(held[seed].begin());
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  Segments segments = segments_of(host);
  std::uint64_t total = 0;
  std::vector<bool> taken(segments.count(), false);
  for (const auto& runs : held) {
    for (const auto& [head, length] : runs) {
      total += length;
      CHECK_EQ(segments.length(head), length);
      for (std::uint64_t index = head; index < head + length; ++index) {
        CHECK(!taken[index]);
        taken[index] = true;
      }
    }
  }
  CHECK_EQ(host.partition->usage().claimed_bytes, total * kSegmentBytes);
  segments.recount();
  CHECK_EQ(host.partition->usage().claimed_bytes, total * kSegmentBytes);
}

TEST("a claim that meets somebody faster in the middle of its run takes back what it had marked") {
  Host host(32ULL << 20, 64ULL << 20);
  Segments segments = segments_of(host);
  // Segment 10 comes and goes, as under another process's hands.
  auto& contended = reinterpret_cast<SharedWord*>(host.partition->writable(kTableOffset))[10];
  const std::uint64_t taken =
      SegmentEntry::head(SegmentStatus::claimed, SegmentKind::run, 0, host.join()).word();
  std::atomic<bool> stop{false};
  std::thread other([&] {
    while (!stop.load(std::memory_order_relaxed)) {
      std::uint64_t seen = contended.load();
      if (SegmentEntry(seen).is_free() && contended.compare_exchange_strong(seen, taken))
        contended.store(seen);
    }
  });
  for (int round = 0; round < 20'000; ++round) {
    const auto head = segments.claim(host.process, SegmentKind::run, 0, 20);
    if (!CHECK(head.ok())) break;
    segments.settle(head.value());
    segments.take(head.value(), host.process);
    segments.give_back(head.value(), host.process);
  }
  stop = true;
  other.join();
  for (std::uint64_t index = 0; index < segments.end(); ++index) {
    if (!CHECK(segments.entry(index).is_free())) break;
  }
  CHECK_EQ(host.partition->usage().claimed_bytes, 0U);
}

TEST("free segments that lie scattered still serve a large block") {
  Host host(16ULL << 20);
  std::vector<GlobalPointer> blocks;
  for (GlobalPointer block = make_block(*host.heap, 100'000); !block.is_null();
       block = make_block(*host.heap, 100'000)) {
    blocks.push_back(block);
  }
  for (std::size_t index = 0; index < blocks.size(); index += 2)
    CHECK(host.heap->free_shallow(blocks[index]).ok());
  CHECK(!make_block(*host.heap, 7ULL << 20).is_null());
}

TEST("the largest blocks come first and name their owners") {
  Host host;
  for (std::uint64_t bytes = 100; bytes < 1'000'000; bytes *= 3) make_block(*host.heap, bytes);
  const auto largest = host.partition->largest_blocks(3);
  if (!CHECK_EQ(largest.size(), 3U)) return;
  CHECK_EQ(largest[0].pointer.extent_bytes, 128 + 656'100U);
  CHECK(largest[0].pointer.extent_bytes > largest[1].pointer.extent_bytes);
  CHECK(largest[1].pointer.extent_bytes > largest[2].pointer.extent_bytes);
  CHECK(owner_process(largest[0].owner) == host.process);
  CHECK_EQ(host.partition->largest_blocks(0).size(), 0U);
  CHECK_EQ(host.partition->largest_blocks(100).size(), host.partition->live_blocks());
}

TEST("a process is alive until it is declared dead, and its slot's next holder is another process") {
  Host host;
  const ProcessId first = host.join();
  CHECK(host.partition->is_alive(first));
  CHECK(!host.partition->is_reapable(first));
  CHECK_EQ(host.partition->processes().size(), 2U);
  host.partition->declare_dead(first);
  CHECK(!host.partition->is_alive(first));
  CHECK(host.partition->is_reapable(first));
  CHECK_EQ(host.partition->processes().size(), 1U);
  std::vector<ProcessId> others;
  while (true) {
    const auto claimed = host.partition->claim_process(ProcessKind::worker, 1);
    if (!claimed.ok()) {
      CHECK(claimed.status().code() == Code::full);
      break;
    }
    CHECK(claimed.value().slot != first.slot);
    others.push_back(claimed.value());
  }
  CHECK_EQ(others.size(), kProcessesMax - 2);
  host.partition->release_process(first);
  const ProcessId next = host.join();
  CHECK_EQ(next.slot, first.slot);
  CHECK(next.generation != first.generation);
  CHECK(!host.partition->is_alive(first) && !host.partition->is_reapable(first) &&
        host.partition->is_alive(next));
  host.partition->release_process(first);  // long gone: nothing happens
  CHECK(host.partition->is_alive(next));
  CHECK(!host.partition->is_alive({9999, 1}));
}

TEST("a process's start time is the one /proc says") {
  Host host;
  const auto all = host.partition->processes();
  if (!CHECK_EQ(all.size(), 1U)) return;
  CHECK_EQ(all[0].pid, static_cast<std::uint32_t>(::getpid()));
  CHECK(all[0].start_time > 0);
  CHECK(all[0].kind == ProcessKind::worker);
}

TEST("counters start at zero for each process and their sums never fall") {
  Host host;
  const ProcessId process = host.join();
  host.partition->count(process, Counter::borrows, 5);
  const auto sum = [&] { return host.partition->counters()[static_cast<std::size_t>(Counter::borrows)]; };
  CHECK_EQ(sum(), 5U);
  host.partition->declare_dead(process);
  CHECK_EQ(sum(), 5U);
  host.partition->release_process(process);
  CHECK_EQ(sum(), 5U);
  for (std::uint32_t index = 0; index < kProcessesMax - 1; ++index)
    CHECK(host.partition->claim_process(ProcessKind::driver, 1).ok());
  for (const ProcessInfo& info : host.partition->processes()) {
    if (info.id.slot == process.slot) CHECK_EQ(info.counters[static_cast<std::size_t>(Counter::borrows)], 0U);
  }
  host.partition->count(host.process, Counter::borrows);
  CHECK_EQ(sum(), 6U);
}

TEST("a value half written is not seen, and keeps no reader waiting") {
  struct Raw {  // as heap::Latched lays it out
    std::uint64_t sequence;
    std::uint64_t copies[2][2];
  };
  alignas(heap::Latched<2>) std::byte memory[sizeof(Raw)] = {};
  static_assert(sizeof(heap::Latched<2>) == sizeof(Raw));
  auto* latched = new (memory) heap::Latched<2>();
  for (std::uint64_t value = 1; value < 5; ++value) {
    latched->write({value, value});
    Raw raw;
    std::memcpy(&raw, memory, sizeof raw);
    raw.copies[(raw.sequence + 1) % 2][0] = 99;  // a writer was killed here
    std::memcpy(memory, &raw, sizeof raw);
    CHECK(latched->read() == (heap::Latched<2>::Words{value, value}));
  }
}

TEST("an endpoint is read whole while it changes") {
  Host host;
  CHECK_EQ(host.partition->endpoint(9).epoch, 0U);
  const auto set = [&](std::uint64_t epoch) {
    host.partition->set_endpoint(9, {epoch, std::string(20 + epoch % 30, static_cast<char>('a' + epoch % 26)),
                                     static_cast<std::uint16_t>(epoch % 60'000)});
  };
  set(1);
  std::thread writer([&] {
    for (std::uint64_t epoch = 2; epoch < 20'000; ++epoch) set(epoch);
  });
  std::uint64_t last = 0;
  while (last < 19'999) {
    const Endpoint seen = host.partition->endpoint(9);
    if (!CHECK(seen.epoch >= last && seen.port == seen.epoch % 60'000)) break;
    if (!CHECK(seen.host == std::string(20 + seen.epoch % 30, static_cast<char>('a' + seen.epoch % 26))))
      break;
    last = seen.epoch;
  }
  writer.join();
  for (ServerId server = 100; server < 100 + kServersPerClusterMax - 1; ++server)
    host.partition->set_endpoint(server, {1, "::1", 5});
  CHECK_EQ(host.partition->endpoint(100 + kServersPerClusterMax - 2).host, "::1");
  CHECK_EQ(host.partition->endpoint(50).epoch, 0U);
}

TEST("a load is read whole while it changes, and grows old by itself") {
  Host host;
  heap::Partition& partition = *host.partition;
  CHECK_EQ(partition.load(9).age_ms, ~0ULL);
  CHECK_EQ(partition.load(kServersPerClusterMax).age_ms, ~0ULL);
  const auto set = [&](std::uint64_t count) {
    partition.set_load(9, {.age_ms = 0, .workers = count, .idle = count, .queued = count, .sent = 0,
                           .cpu_permille = count, .quota_bytes = count, .claimed_bytes = count});
  };
  set(1);
  std::thread writer([&] {
    for (std::uint64_t count = 2; count < 20'000; ++count) set(count);
  });
  std::uint64_t last = 0;
  while (last < 19'999) {
    const Load seen = partition.load(9);
    if (!CHECK(seen.workers >= last && seen.idle == seen.workers && seen.queued == seen.workers)) break;
    if (!CHECK(seen.cpu_permille == seen.workers && seen.claimed_bytes == seen.quota_bytes)) break;
    last = seen.workers;
  }
  writer.join();
  partition.set_load(9, {.age_ms = 5000});
  CHECK(partition.load(9).age_ms >= 5000);
  CHECK_EQ(partition.load(8).age_ms, ~0ULL);
}

TEST("tasks sent to a server count until its next load is written") {
  Host host;
  host.partition->set_load(2, {.queued = 1});
  host.partition->note_sent(2, 3);
  host.partition->note_sent(2, 1);
  CHECK_EQ(host.partition->load(2).sent, 4U);
  CHECK_EQ(host.partition->load(2).queued, 1U);
  host.partition->set_load(2, {.queued = 5});
  CHECK_EQ(host.partition->load(2).sent, 0U);
}

TEST("closing is seen by everybody, once and for all") {
  Host host;
  auto attached = Partition::attach(::dup(host.partition->memfd()));
  CHECK(!attached.value()->is_closed());
  host.partition->close();
  CHECK(attached.value()->is_closed());
}

TEST("the room for memory is the least of the machine's and every control group's, above a reserve") {
  char pattern[] = "/tmp/drust-room-XXXXXX";
  const std::filesystem::path folder = ::mkdtemp(pattern);
  const auto write = [&](const std::string& name, const std::string& text) {
    std::filesystem::create_directories((folder / name).parent_path());
    std::ofstream(folder / name) << text;
  };
  const RoomSources sources = {folder / "meminfo", folder / "self", folder / "cg"};
  constexpr std::uint64_t kMiB = 1ULL << 20;
  CHECK_EQ(memory_room_bytes(sources), ~0ULL);  // nothing can be read: nothing limits
  write("meminfo", "MemTotal:       32768000 kB\nMemFree: 1 kB\nMemAvailable:   16384000 kB\n");
  CHECK_EQ(memory_room_bytes(sources), 16'384'000ULL * 1024 - kMemoryReserveBytesMax);
  write("self", "4:memory,blkio:/a/b\n0::/job/task\n");
  write("cg/job/memory.max", std::to_string(1000 * kMiB) + "\n");
  write("cg/job/memory.current", std::to_string(600 * kMiB) + "\n");
  write("cg/job/memory.stat", "anon 5\ninactive_file " + std::to_string(60 * kMiB) + "\nactive_file " +
                                  std::to_string(40 * kMiB) + "\n");
  write("cg/job/task/memory.max", "max\n");
  write("cg/job/task/memory.current", "5\n");
  CHECK_EQ(memory_room_bytes(sources),
           500 * kMiB - 500 * kMiB / 8);  // the parent's limit; its page cache can go
  write("cg/memory/a/memory.limit_in_bytes", std::to_string(80 * kMiB) + "\n");
  write("cg/memory/a/memory.usage_in_bytes", std::to_string(48 * kMiB) + "\n");
  CHECK_EQ(memory_room_bytes(sources), 28 * kMiB);
  write("cg/memory/a/memory.usage_in_bytes", std::to_string(90 * kMiB) + "\n");
  CHECK_EQ(memory_room_bytes(sources), 0U);
  std::filesystem::remove_all(folder);
}

TEST("who waits for a row of the endpoint table is woken by who writes it, and not by another row") {
  Host host;
  host.partition->set_endpoint(1, {1, "127.0.0.1", 5});
  host.partition->set_endpoint(2, {1, "127.0.0.1", 6});
  const Endpoint seen = host.partition->endpoint(1);
  CHECK(!host.partition->await_endpoint(1, seen, deadline_in(20)));
  CHECK(!host.partition->await_endpoint(9, {}, deadline_in(10'000)));  // there is none to wait for
  int prompt = 0;
  for (std::uint64_t epoch = 2; epoch < 42; ++epoch) {
    const auto began = std::chrono::steady_clock::now();
    const Endpoint before = host.partition->endpoint(1);
    std::atomic<bool> is_waiting{false};
    std::thread waiter([&] {
      is_waiting.store(true);
      CHECK(host.partition->await_endpoint(1, before, deadline_in(10'000)));
    });
    while (!is_waiting.load()) std::this_thread::yield();
    host.partition->set_endpoint(2, {epoch, "127.0.0.1", 6});
    host.partition->set_endpoint(1, {epoch, "127.0.0.1", 5});
    waiter.join();
    if (std::chrono::steady_clock::now() - began < std::chrono::milliseconds(kWaitSliceMs)) ++prompt;
  }
  // Without the wake each would sleep kWaitSliceMs, unless its thread came too late to sleep.
  CHECK(prompt > 20);
  host.partition->close();
  CHECK(!host.partition->await_endpoint(1, host.partition->endpoint(1), deadline_in(10'000)));
}
