// Channels: order, bounds, closing, and what becomes of messages when senders and receivers are killed at each step.
#include <csignal>
#include <sys/wait.h>

#include <atomic>
#include <cstring>
#include <set>
#include <thread>
#include <vector>

#include "base/kill_point.hpp"
#include "sync/bury.hpp"
#include "sync/channel.hpp"
#include "test/harness.hpp"
#include "test/heap_fixture.hpp"

using namespace drust;
using namespace drust::sync;
using test::Host;
using test::make_block;

namespace {

struct Ends {
  GlobalPointer object;
  GlobalPointer hold;
  ChannelWords* words = nullptr;
  Ends(Host& host, std::uint64_t capacity) {
    const auto made = make<ChannelWords>(*host.heap, Kind::channel, object);
    ensure(made.ok(), "no channel to test with");
    hold = made.value();
    words = find<ChannelWords>(*host.partition, object);
    words->capacity.store(capacity);
  }
};

GlobalPointer message(heap::Heap& heap, std::uint64_t number) {
  const GlobalPointer made = make_block(heap, sizeof number);
  ensure(!made.is_null(), "no room for a message");
  std::memcpy(test::block_at(heap.partition(), made.address).buffer(0).data(), &number, sizeof number);
  return made;
}

std::uint64_t number_in(const heap::Partition& partition, const GlobalPointer& received) {
  std::uint64_t number = 0;
  std::memcpy(&number, test::block_at(partition, received.address).buffer(0).data(), sizeof number);
  return number;
}

Who self(const heap::Heap& heap) { return Who::make(heap.partition().server(), heap.process()); }

}  // namespace

TEST("messages come in the order in which they were sent, however often the ring goes round") {
  for (const std::uint64_t capacity : {1ULL, 3ULL, 2000ULL}) {
    Host host;
    Ends ends(host, capacity);
    Channel channel(*host.heap, ends.object, *ends.words);
    std::uint64_t received = 0;
    for (std::uint64_t sent = 0; sent < 5000; ++sent) {
      if (sent - received == capacity) {
        if (capacity < 10) CHECK_EQ(channel.length(), capacity);  // it counts cell by cell
        const GlobalPointer extra = message(*host.heap, 0);
        CHECK(channel.try_send(self(*host.heap), extra).code() == Code::full);
        CHECK(host.heap->free_shallow(extra).ok());
        const auto got = channel.try_receive(self(*host.heap));
        if (!CHECK(got.ok())) return;
        CHECK_EQ(number_in(*host.partition, got.value()), received++);
        CHECK(host.heap->free_shallow(got.value()).ok());
      }
      CHECK(channel.try_send(self(*host.heap), message(*host.heap, sent)).ok());
    }
    while (received < 5000) {
      const auto got = channel.try_receive(self(*host.heap));
      if (!CHECK(got.ok())) return;
      CHECK_EQ(number_in(*host.partition, got.value()), received++);
    }
    CHECK_EQ(received, 5000U);
    CHECK(channel.try_receive(self(*host.heap)).status().code() == Code::timed_out);
  }
}

TEST("each message is received once, by threads that send and receive at the same time") {
  Host host;
  Ends ends(host, 8);
  constexpr std::uint64_t kEach = 2000;
  constexpr std::uint64_t kSenders = 3;
  std::vector<std::atomic<int>> seen(kEach * kSenders);
  std::atomic<std::uint64_t> left{kEach * kSenders};
  std::vector<std::thread> threads;
  for (std::uint64_t sender = 0; sender < kSenders; ++sender) {
    threads.emplace_back([&, sender] {
      Channel channel(*host.heap, ends.object, *ends.words);
      for (std::uint64_t index = 0; index < kEach; ++index) {
        const GlobalPointer sent = message(*host.heap, sender * kEach + index);
        for (;;) {
          const std::uint32_t rooms = channel.rooms();
          if (channel.try_send(self(*host.heap), sent).ok()) break;
          static_cast<void>(channel.wait_room(rooms, deadline_in(1000)));
        }
      }
    });
    threads.emplace_back([&] {
      Channel channel(*host.heap, ends.object, *ends.words);
      while (left.load() > 0) {
        const std::uint32_t arrivals = channel.arrivals();
        const auto got = channel.try_receive(self(*host.heap));
        if (!got.ok()) {
          static_cast<void>(channel.wait_arrival(arrivals, deadline_in(5)));
          continue;
        }
        seen[number_in(*host.partition, got.value())].fetch_add(1);
        CHECK(host.heap->free_shallow(got.value()).ok());
        left.fetch_sub(1);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  int wrong = 0;
  for (const std::atomic<int>& count : seen) wrong += count.load() == 1 ? 0 : 1;
  CHECK_EQ(wrong, 0);
}

TEST("an end that is gone is told to the other, and what is left goes with the channel") {
  Host host;
  const std::uint64_t before = host.partition->live_blocks();
  Ends ends(host, 4);
  Channel channel(*host.heap, ends.object, *ends.words);
  CHECK(channel.try_send(self(*host.heap), message(*host.heap, 1)).ok());
  CHECK(channel.try_send(self(*host.heap), message(*host.heap, 2)).ok());
  channel.end(ChannelWords::kSenders);
  const auto got = channel.try_receive(self(*host.heap));
  CHECK(got.ok());
  CHECK(host.heap->free_shallow(got.value()).ok());
  channel.end(ChannelWords::kReceivers);
  const GlobalPointer refused = message(*host.heap, 3);
  CHECK(channel.try_send(self(*host.heap), refused).code() == Code::closed);
  CHECK(host.heap->free_shallow(refused).ok());
  std::vector<GlobalPointer> remote;
  channel.clear(remote);
  CHECK(channel.try_receive(self(*host.heap)).status().code() == Code::closed);
  CHECK(host.heap->free(ends.hold, remote).ok());
  CHECK(host.heap->free(ends.object, remote).ok());
  CHECK_EQ(host.partition->live_blocks(), before);
}

#if DRUST_TEST_FORKS
namespace {

// In a child: sends numbers of its own and receives whatever comes, for ever; what it receives it frees.
[[noreturn]] void chatter(int memfd, const GlobalPointer& object, std::uint32_t point, std::uint32_t nth, int ready) {
  auto attached = heap::Partition::attach(memfd);
  if (!attached.ok()) ::_exit(2);
  heap::Partition& partition = *attached.value();
  const auto process = partition.claim_process(heap::ProcessKind::worker, static_cast<std::uint32_t>(::getpid()));
  if (!process.ok()) ::_exit(3);
  heap::Heap heap(partition, process.value());
  Channel channel(heap, object, *find<ChannelWords>(partition, object));
  static_cast<void>(!::write(ready, &process.value(), sizeof process.value()));
  arm_kill_point(point, nth, KillAction::kill);
  for (std::uint64_t number = 1;; ++number) {
    const GlobalPointer sent = message(heap, number);
    if (!channel.try_send(self(heap), sent).ok()) static_cast<void>(heap.free_shallow(sent));
    if (const auto got = channel.try_receive(self(heap)); got.ok()) static_cast<void>(heap.free_shallow(got.value()));
  }
}

}  // namespace

TEST("a kill at any step leaves a channel that works, each message once, and nothing that nobody owns") {
  for (std::uint32_t point = 0; point < kKillPoints.size(); ++point) {
    if (!kKillPoints[point].starts_with("shared.channel.")) continue;
    const bool is_once = kKillPoints[point] == "shared.channel.segment";
    for (const std::uint32_t nth : {1U, 9U}) {
      if (is_once && nth > 1) continue;
      Host host;
      const std::uint64_t before = host.partition->live_blocks();
      Ends ends(host, 3);
      Channel channel(*host.heap, ends.object, *ends.words);
      std::vector<GlobalPointer> remote;
      int ready[2];
      ensure(::pipe(ready) == 0, "no pipe");
      const pid_t pid = ::fork();
      if (pid == 0) chatter(host.partition->memfd(), ends.object, point, nth, ready[1]);
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
      std::set<std::uint64_t> left;  // each at most once
      while (true) {
        const auto got = channel.try_receive(self(*host.heap));
        if (!got.ok()) break;
        CHECK(left.insert(number_in(*host.partition, got.value())).second);
        CHECK(host.heap->free_shallow(got.value()).ok());
      }
      for (std::uint64_t number = 100; number < 110; ++number) {
        CHECK(channel.try_send(self(*host.heap), message(*host.heap, number)).ok());
        const auto got = channel.try_receive(self(*host.heap));
        if (!CHECK(got.ok())) {
          std::printf("at %s\n", kKillPoints[point].data());
          break;
        }
        CHECK_EQ(number_in(*host.partition, got.value()), number);
        CHECK(host.heap->free_shallow(got.value()).ok());
      }
      channel.clear(remote);
      CHECK(host.heap->free(ends.hold, remote).ok());
      CHECK(host.heap->free(ends.object, remote).ok());
      if (!CHECK_EQ(host.partition->live_blocks(), before)) std::printf("left at %s\n", kKillPoints[point].data());
    }
  }
}
#endif
