// The serving threads: strangers, slow peers, the control plane, and rest when nothing happens.
#include "server/serve.hpp"

#include <poll.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include <chrono>
#include <thread>

#include "server/loop.hpp"
#include "test/harness.hpp"
#include "test/host.hpp"
#include "transport/handshake.hpp"
#include "transport/tcp.hpp"

using namespace drust;
using heap::Counter;
using test::Host;
using test::pattern;
using test::request;
using wire::Operation;
using Bytes = std::vector<std::byte>;
using Clock = std::chrono::steady_clock;

namespace {

std::int64_t ms_since(Clock::time_point start) {
  return std::chrono::duration_cast<std::chrono::milliseconds>(Clock::now() - start).count();
}

std::unique_ptr<transport::Stream> call(const Host& host) {
  auto stream = transport::connect_tcp("127.0.0.1", host.server->port(), 2000);
  CHECK(stream.ok());
  return stream.ok() ? std::move(stream.value()) : nullptr;
}

// A connection that has proved itself.
std::unique_ptr<transport::Stream> join(const Host& host) {
  auto stream = call(host);
  transport::Handshake handshake(transport::Role::client, test::test_token(), host.partition->server(),
                                 transport::draw_nonce());
  CHECK(transport::shake_hands(*stream, handshake, 2000).ok());
  stream->bound_silence(5000);
  return stream;
}

template <class T>
void say(transport::Stream& stream, const T& message) {
  T copy = message;
  iovec part{&copy, sizeof copy};
  CHECK(stream.send_all({&part, 1}).ok());
}

// Whether the server has closed, waiting for it up to the stream's bound.
bool is_closed(transport::Stream& stream) {
  std::byte one;
  const iovec part{&one, 1};
  for (;;) {
    const auto received = stream.receive_some({&part, 1});
    if (!received.ok()) return received.status().code() == Code::server_lost;
  }
}

}  // namespace

TEST("an idle server uses no processor time, with connections and without") {
  Host home(1);
  Host here(2);
  CHECK(home.serve().ok());
  here.know(home);
  CHECK(here.peers->ping(1).ok());
  here.peers->free_later(home.make(pattern(10)), false);
  here.peers->flush_frees();
  const auto used_us = [] {
    rusage usage{};
    ::getrusage(RUSAGE_SELF, &usage);
    return (usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1'000'000 + usage.ru_utime.tv_usec +
           usage.ru_stime.tv_usec;
  };
  const auto before = used_us();
  (void)::poll(nullptr, 0, 500);  // the time over which is measured
  CHECK(used_us() - before < 20'000);
}

TEST("a malformed frame closes its connection, and others are served on") {
  Host home(1);
  CHECK(home.serve().ok());
  const GlobalPointer block = home.make(pattern(1000));
  auto good = join(home);
  auto bad = join(home);
  wire::RequestHeader header = request(Operation::read_block, block);
  header.flags = 9;
  say(*bad, header);
  CHECK(is_closed(*bad));
  CHECK_EQ(home.counted(Counter::frames_rejected), 1);
  say(*good, request(Operation::ping));
  wire::ReplyHeader reply;
  iovec part{&reply, sizeof reply};
  CHECK(good->receive_all({&part, 1}).ok());
  CHECK(wire::check(reply, Operation::ping).ok());
  CHECK(home.is_live(block));
}

TEST("another protocol version is told the server's and counted") {
  Host home(1);
  CHECK(home.serve().ok());
  auto stream = call(home);
  transport::Hello hello;
  hello.role = static_cast<std::uint8_t>(transport::Role::client);
  hello.version = 77;
  say(*stream, hello);
  transport::Hello answer;
  iovec part{&answer, sizeof answer};
  CHECK(stream->receive_all({&part, 1}).ok());
  CHECK_EQ(answer.version, kProtocolVersion);
  CHECK(is_closed(*stream));
  CHECK_EQ(home.counted(Counter::frames_rejected), 1);
}

TEST("strangers that say nothing are dropped in time, and many of them keep nobody out") {
  Host home(1);
  Host here(2);
  CHECK(home.serve().ok());
  here.know(home);
  const auto start = Clock::now();
  std::vector<std::unique_ptr<transport::Stream>> strangers;
  for (std::uint32_t index = 0; index < server::kHandshakesMax + 40; ++index) strangers.push_back(call(home));
  CHECK(here.peers->ping(1).ok());
  CHECK(ms_since(start) < 1900);
  strangers.front()->bound_silence(1000);
  CHECK(is_closed(*strangers.front()));  // the oldest had to make room before its time
  CHECK(ms_since(start) < 1900);
  for (auto& stranger : strangers) {
    stranger->bound_silence(5000);
    CHECK(is_closed(*stranger));
  }
  CHECK(ms_since(start) < 4000);
  CHECK_EQ(home.counted(Counter::frames_rejected), strangers.size());
  CHECK(here.peers->ping(1).ok());
}

TEST("a peer that does not read its answer delays nobody") {
  Host home(1, 256ULL << 20);
  Host here(2);
  CHECK(home.serve(1).ok());  // one thread for all
  here.know(home);
  const GlobalPointer large = home.make(pattern(64 << 20));
  auto slow = join(home);
  say(*slow, request(Operation::read_block, large));
  const auto start = Clock::now();
  for (int round = 0; round < 100; ++round) CHECK(here.peers->ping(1).ok());
  CHECK(ms_since(start) < 2000);
  // And then it gets all of it.
  wire::ReplyHeader reply;
  Bytes body(large.extent_bytes + sizeof(wire::Trailer));
  iovec parts[2] = {{&reply, sizeof reply}, {body.data(), body.size()}};
  CHECK(slow->receive_all(parts).ok());
  CHECK_EQ(reply.body_bytes, body.size());
}

TEST("a peer that ends in the middle of a body is forgotten with what it sent") {
  Host home(1);
  CHECK(home.serve().ok());
  const std::uint64_t claimed = home.partition->usage().claimed_bytes;
  auto stream = join(home);
  say(*stream, request(Operation::put_block, {Address(), 0, 8 << 20}, 8 << 20));
  Bytes half(4 << 20);
  iovec part{half.data(), half.size()};
  CHECK(stream->send_all({&part, 1}).ok());
  stream.reset();
  auto other = join(home);
  const auto start = Clock::now();
  while (home.partition->usage().claimed_bytes > claimed && ms_since(start) < 2000) std::this_thread::yield();
  CHECK_EQ(home.partition->usage().claimed_bytes, claimed);
  CHECK_EQ(home.partition->live_blocks(), 0);
}

TEST("control requests reach the control plane and are answered in any order") {
  Host home(1);
  Host here(2);
  CHECK(home.serve().ok());
  here.know(home);
  CHECK_EQ(home.server->take_control(0).status().code(), Code::timed_out);
  const auto ask = [&](unsigned seed, std::size_t size) {
    const auto answer = here.peers->control(1, pattern(size, seed));
    CHECK(answer.ok() && answer.value() == pattern(size + 1, seed));
  };
  std::thread one([&] { ask(1, 0); });
  std::thread two([&] { ask(2, 1'000'000); });
  auto first = home.server->take_control(2000);
  auto second = home.server->take_control(2000);
  if (CHECK(first.ok() && second.ok())) {
    for (auto* taken : {&second.value(), &first.value()}) {
      home.server->reply_control(taken->id, pattern(taken->body.size() + 1, taken->body.empty() ? 1 : 2));
    }
    home.server->reply_control(first.value().id, {});  // answered before: ignored
  }
  one.join();
  two.join();
}

TEST("stopping ends everything: connections, the port, and who waits for control requests") {
  Host home(1);
  CHECK(home.serve().ok());
  auto stream = join(home);
  const std::uint16_t port = home.server->port();
  std::thread waiter([&] { CHECK_EQ(home.server->take_control(10'000).status().code(), Code::closed); });
  const auto start = Clock::now();
  home.server->stop();
  waiter.join();
  CHECK(is_closed(*stream));
  CHECK_EQ(transport::connect_tcp("127.0.0.1", port, 2000).status().code(), Code::server_lost);
  CHECK(ms_since(start) < 1000);
}

TEST("a forked child that lets go of its copy of a server leaves its parent's running") {
  Host home(1);
  Host here(2);
  CHECK(home.serve().ok());
  here.know(home);
  const pid_t child = ::fork();
  if (child == 0) {
    home.server.reset();
    ::_exit(0);
  }
  int end = -1;
  ::waitpid(child, &end, 0);
  CHECK(WIFEXITED(end) && WEXITSTATUS(end) == 0);
  CHECK(here.peers->ping(1).ok());
}

TEST("a server needs a token and a free port") {
  Host home(1);
  CHECK(home.serve().ok());
  server::ServeOptions options;
  options.port = home.server->port();
  options.token = test::test_token();
  CHECK(!server::Server::start(*home.heap, *home.queue, *home.peers, options).ok());
  options.port = 0;
  options.token.clear();
  CHECK_EQ(server::Server::start(*home.heap, *home.queue, *home.peers, options).status().code(),
           Code::bad_request);
}
