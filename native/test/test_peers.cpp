// Calls between servers over real sockets: what arrives, how frees travel, and how each kind of lost server
// shows.
#include "server/peers.hpp"

#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <thread>

#include "test/harness.hpp"
#include "test/host.hpp"

using namespace drust;
using heap::Counter;
using test::Host;
using test::pattern;
using Bytes = std::vector<std::byte>;
using Clock = std::chrono::steady_clock;

namespace {

std::int64_t ms_since(Clock::time_point start) {
  return std::chrono::duration_cast<std::chrono::milliseconds>(Clock::now() - start).count();
}

// Server 1 serving, server 2 asking.
struct Pair {
  Host home{1, 256ULL << 20};
  Host here{2, 256ULL << 20};
  Pair() {
    CHECK(home.serve().ok());
    here.know(home);
  }
};

// Until `condition` holds; false after two seconds.
template <class Condition>
bool eventually(Condition condition) {
  const auto start = Clock::now();
  while (!condition()) {
    if (ms_since(start) > 2000) return false;
    std::this_thread::yield();
  }
  return true;
}

// Server 1 in a process of its own, with one block. Made before this process has threads.
struct ForkedServer {
  struct Offer {
    std::uint16_t port;
    GlobalPointer block;
  } offer{};
  pid_t child = -1;
  ForkedServer() {
    int offers[2];
    ensure(::pipe(offers) == 0, "a test needs a pipe");
    child = ::fork();
    if (child == 0) {
      Host host(1);
      Offer made{0, host.make(pattern(1000))};
      if (!host.serve().ok()) ::_exit(1);
      made.port = host.server->port();
      if (::write(offers[1], &made, sizeof made) != sizeof made) ::_exit(1);
      for (;;) ::pause();
    }
    ::close(offers[1]);
    ensure(::read(offers[0], &offer, sizeof offer) == sizeof offer, "the forked server must start");
    ::close(offers[0]);
  }
  void end() {
    if (child <= 0) return;
    ::kill(child, SIGKILL);
    ::waitpid(child, nullptr, 0);
    child = -1;
  }
  ~ForkedServer() { end(); }
};

}  // namespace

TEST("a killed server is noticed at once, by a pooled connection and by a new one") {
  ForkedServer forked;
  Host here(2);
  here.know(1, forked.offer.port);
  CHECK(here.peers->read_block(forked.offer.block).ok());  // leaves a connection in the pool
  forked.end();
  const auto start = Clock::now();
  CHECK_EQ(here.peers->read_block(forked.offer.block).status().code(), Code::server_lost);
  CHECK_EQ(here.peers->put_block(1, here.make(pattern(10))).status().code(), Code::server_lost);
  CHECK(ms_since(start) < 500);
}

TEST("a stopped server is noticed within five seconds, and all is well when it goes on") {
  ForkedServer forked;
  Host here(2);
  here.know(1, forked.offer.port);
  CHECK(here.peers->ping(1).ok());
  ::kill(forked.child, SIGSTOP);
  ::waitpid(forked.child, nullptr, WUNTRACED);  // until every thread of it has stopped
  auto start = Clock::now();
  const Status status = here.peers->read_block(forked.offer.block).status();
  CHECK_EQ(status.code(), Code::server_lost);
  CHECK(status.detail().find("server 1") != std::string::npos);
  CHECK(ms_since(start) >= 3900);
  CHECK(ms_since(start) < 5000);
  start = Clock::now();
  CHECK_EQ(here.peers->ping(1).code(),
           Code::server_lost);  // a fresh connection: the kernel accepts, nobody answers
  CHECK(ms_since(start) < 5000);
  ::kill(forked.child, SIGCONT);
  const auto read = here.peers->read_block(forked.offer.block);
  CHECK(read.ok() && here.bytes(read.value()) == pattern(1000));
}

TEST("a forked child can neither use nor disturb the connections of its parent") {
  ForkedServer forked;
  Host here(2);
  here.know(1, forked.offer.port);
  CHECK(here.peers->ping(1).ok());
  const pid_t child = ::fork();
  if (child == 0) {
    const bool is_closed = here.peers->ping(1).code() == Code::closed;
    here.peers.reset();
    ::_exit(is_closed ? 0 : 1);
  }
  int end = -1;
  ::waitpid(child, &end, 0);
  CHECK(WIFEXITED(end) && WEXITSTATUS(end) == 0);
  CHECK(here.peers->ping(1).ok());
}

TEST("a block is read into this partition under a colour of this partition") {
  Pair pair;
  for (const std::size_t size :
       {std::size_t{1}, std::size_t{512}, std::size_t{100'000}, std::size_t{64} << 20}) {
    const Bytes value = pattern(size);
    const GlobalPointer remote = pair.home.make(value, 23);
    const auto copy = pair.here.peers->read_block(remote);
    if (!CHECK(copy.ok())) return;
    CHECK(copy.value().address.server() == 2);
    CHECK_EQ(copy.value().extent_bytes, remote.extent_bytes);
    CHECK_EQ(pair.here.block(copy.value().address).header().codec, 23);
    CHECK(pair.here.bytes(copy.value()) == value);
    CHECK(pair.home.is_live(remote));
  }
  CHECK_EQ(pair.here.counted(Counter::read_requests), 4);
  CHECK_EQ(pair.home.counted(Counter::messages_served), 4);
  CHECK(pair.here.counted(Counter::bytes_received) > 64ULL << 20);
}

TEST("a stale read is said to be stale and leaves nothing here") {
  Pair pair;
  const GlobalPointer old = pair.home.make(pattern(500));
  const GlobalPointer now = pair.home.heap->recolour(old).value();
  CHECK_EQ(pair.here.peers->read_block(old).status().code(), Code::stale);
  CHECK_EQ(pair.here.partition->live_blocks(), 0);
  CHECK(pair.here.peers->read_block(now).ok());
}

TEST("a region travels there and back in one request each way") {
  Pair pair;
  const GlobalPointer remote = pair.home.make(Bytes(1 << 20));
  const wire::Region region{128, 1000, 100, 10'000};
  const Bytes value = pattern(100'000);
  CHECK(pair.here.peers->write_region(remote, region, value).ok());
  Bytes back(100'000);
  CHECK(pair.here.peers->read_region(remote, region, back).ok());
  CHECK(back == value);
  CHECK_EQ(pair.here.counted(Counter::write_requests), 1);
  CHECK_EQ(pair.here.counted(Counter::read_requests), 1);
  CHECK_EQ(pair.here.peers->read_region(remote, region, std::span(back).first(10)).code(), Code::bad_request);
  const GlobalPointer now = pair.home.heap->recolour(remote).value();
  CHECK_EQ(pair.here.peers->write_region(remote, region, value).code(), Code::stale);
  CHECK_EQ(pair.here.peers->read_region(remote, region, back).code(), Code::stale);
  CHECK(pair.here.peers->read_region(now, region, back).ok());
}

TEST("a block put on another server is that server's; a task is queued there; its completion comes home") {
  Pair pair;
  CHECK(pair.here.serve().ok());
  pair.home.know(pair.here);
  const auto put = pair.here.peers->put_block(1, pair.here.make(pattern(3'000'000)));
  if (!CHECK(put.ok())) return;
  CHECK(pair.home.bytes(put.value()) == pattern(3'000'000));

  const GlobalPointer record = tasks::Queue::make_record(*pair.here.heap, 1).value();
  CHECK(pair.here.peers->submit(1, pair.here.make(pattern(300), tasks::kTaskCodec), record).ok());
  const auto entry = pair.home.queue->take(1000);
  if (!CHECK(entry.ok())) return;
  CHECK(pair.home.bytes(entry.value().task) == pattern(300));
  const GlobalPointer completion = pair.home.make(pattern(20), tasks::kCompletionCodec);
  const auto done = static_cast<std::uint32_t>(tasks::RecordState::done);
  CHECK(pair.home.peers->complete(entry.value().record, done, completion).ok());
  CHECK(
      pair.home.peers->complete(entry.value().record, done, completion).ok());  // once more: nothing happens
  const auto settled = tasks::Queue::wait(*pair.here.partition, record, 1000);
  if (!CHECK(settled.ok())) return;
  CHECK(pair.here.bytes(settled.value()->completion()) == pattern(20));
  CHECK_EQ(pair.here.counted(Counter::submit_messages), 1);
  CHECK_EQ(pair.home.counted(Counter::complete_messages), 2);
}

TEST("frees leave in batches, and with the next request when there is one") {
  Pair pair;
  std::vector<GlobalPointer> blocks;
  for (int index = 0; index < 200; ++index) blocks.push_back(pair.home.make(pattern(100)));
  CHECK(pair.here.peers->ping(1).ok());
  for (const GlobalPointer& block : blocks) pair.here.peers->free_later(block, false);
  CHECK(eventually([&] { return pair.home.partition->live_blocks() == 0; }));
  // Counted once they have left: the last batch may have arrived before.
  CHECK(eventually([&] { return pair.here.counted(Counter::frees_sent) == 200; }));
  CHECK(eventually([&] { return pair.here.counted(Counter::free_messages) >= 4; }));
  // A late duplicate, in the batch of a request: it has been executed when the request is answered.
  const GlobalPointer last = pair.home.make(pattern(100));
  pair.here.peers->free_later(blocks[7], false);
  pair.here.peers->free_later(last, true);
  pair.here.peers->flush_frees();
  CHECK(pair.here.peers->ping(1).ok());
  CHECK(eventually([&] { return !pair.home.is_live(last); }));
}

TEST("a free that waits leaves ahead of the next request") {
  Pair pair;
  CHECK(pair.here.peers->ping(1).ok());
  int freed_first = 0;
  for (int round = 0; round < 100; ++round) {
    const GlobalPointer block = pair.home.make(pattern(100));
    pair.here.peers->free_later(block, false);
    freed_first += pair.here.peers->read_block(block).ok() ? 0 : 1;
  }
  CHECK(freed_first > 50);  // not all: the sweeper may have the batch in its hands on another connection
}

TEST("frees that are queued when a process closes are sent") {
  Pair pair;
  const GlobalPointer block = pair.home.make(pattern(100));
  pair.here.peers->free_later(block, false);
  pair.here.peers->close();
  CHECK(eventually([&] { return !pair.home.is_live(block); }));
  CHECK_EQ(pair.here.peers->ping(1).code(), Code::closed);
}

TEST("frees for a server that cannot be reached for a while are carried out when it is back") {
  Pair pair;
  const std::uint16_t port = pair.home.server->port();
  const GlobalPointer block = pair.home.make(pattern(100));
  CHECK(pair.here.peers->ping(1).ok());
  pair.home.server.reset();
  pair.here.peers->free_later(block, false);
  CHECK(!pair.here.peers->flush_frees());
  CHECK(pair.home.is_live(block));
  CHECK(pair.home.serve(2, port).ok());
  CHECK(eventually([&] { return !pair.home.is_live(block); }));  // by the housekeeping thread
}

TEST("frees for a server that has ended for good are forgotten") {
  Pair pair;
  const GlobalPointer block = pair.home.make(pattern(100));
  CHECK(pair.here.peers->ping(1).ok());
  const std::uint16_t port = pair.home.server->port();
  pair.home.server.reset();
  pair.here.peers->free_later(block, false);
  CHECK(!pair.here.peers->flush_frees());
  pair.here.know(1, 0, 2);
  CHECK(eventually([&] { return pair.here.peers->flush_frees(); }));
  CHECK(pair.home.serve(2, port).ok());
  pair.here.know(1, port, 3);
  CHECK(pair.here.peers->ping(1).ok());
  CHECK(pair.home.is_live(block));
}

TEST("frees that nothing follows cost one answer a batch") {
  Pair pair;
  CHECK(pair.here.peers->ping(1).ok());
  const std::uint64_t before_bytes = pair.here.counted(Counter::bytes_received);
  for (int index = 0; index < 64; ++index) pair.here.peers->free_later(pair.home.make(pattern(100)), false);
  CHECK(pair.here.peers->flush_frees());
  CHECK_EQ(pair.home.partition->live_blocks(), 0U);  // once it has returned they are gone
  const std::uint64_t messages = pair.here.counted(Counter::free_messages);
  CHECK_EQ(pair.here.counted(Counter::frees_sent), 64U);
  CHECK_EQ(pair.here.counted(Counter::bytes_received) - before_bytes,
           messages * sizeof(wire::ReplyHeader));
}

TEST("a freed tree that reaches into a third server is freed there too") {
  Pair pair;
  Host third(3);
  CHECK(third.serve().ok());
  pair.home.know(third);
  const GlobalPointer leaf = third.make(pattern(10));
  const GlobalPointer tree = pair.home.make_parent({leaf});
  pair.here.peers->free_later(tree, false);
  CHECK(eventually([&] { return !third.is_live(leaf); }));
  CHECK(!pair.home.is_live(tree));
}

TEST("an unknown server is lost at once, and frees for it are forgotten") {
  Host here(2);
  CHECK_EQ(here.peers->ping(1).code(), Code::server_lost);
  here.peers->free_later({Address::make(1, 4096), (1ULL << 48) | 1, 64}, false);
  here.peers->flush_frees();
  CHECK_EQ(here.counted(Counter::free_messages), 0);
}

TEST("a restarted server is found at its new place, and a request survives the old connection") {
  Pair pair;
  const std::uint16_t port = pair.home.server->port();
  CHECK(pair.here.peers->ping(1).ok());
  pair.home.server.reset();
  CHECK(pair.home.serve(2, port).ok());  // same place: the pooled connection is dead
  CHECK(pair.here.peers->ping(1).ok());
  pair.home.server.reset();
  CHECK_EQ(pair.here.peers->ping(1).code(), Code::server_lost);
  CHECK(pair.home.serve().ok());
  pair.here.know(pair.home, 2);
  CHECK(pair.here.peers->ping(1).ok());
}

TEST("a wrong token is refused, and the refusal is counted and logged") {
  Host home(1);
  CHECK(home.serve().ok());
  Host stranger(2, 64ULL << 20, server::Token(kTokenBytes, std::byte{7}));
  stranger.know(home);
  CHECK_EQ(stranger.peers->ping(1).code(), Code::unauthenticated);
  CHECK_EQ(home.counted(Counter::frames_rejected), 1);
  CHECK(eventually([&] {
    const std::lock_guard<std::mutex> lock(home.mutex);
    return home.log.size() == 1 && home.log[0].find("token") != std::string::npos;
  }));
  Host without(3, 64ULL << 20, {});
  without.know(home);
  CHECK_EQ(without.peers->ping(1).code(), Code::unauthenticated);
}

TEST("a server that is not the one we know is not talked to") {
  Pair pair;
  pair.here.know(9, pair.home.server->port());
  CHECK_EQ(pair.here.peers->ping(9).code(), Code::server_lost);
}

TEST("many threads ask at once and each gets its own answer") {
  Pair pair;
  std::vector<std::thread> threads;
  std::vector<GlobalPointer> blocks;
  for (unsigned index = 0; index < 4; ++index) blocks.push_back(pair.home.make(pattern(20'000, index)));
  for (unsigned index = 0; index < 4; ++index) {
    threads.emplace_back([&, index] {
      std::vector<GlobalPointer> remote;
      for (int round = 0; round < 100; ++round) {
        const auto copy = pair.here.peers->read_block(blocks[index]);
        if (!CHECK(copy.ok())) return;
        CHECK(pair.here.bytes(copy.value()) == pattern(20'000, index));
        CHECK(pair.here.heap->free(copy.value(), remote).ok());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK_EQ(pair.here.counted(Counter::read_requests), 400);
}
