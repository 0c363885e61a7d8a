// What every transport must do, asked of each: the same claims over TCP and over the simulated network. What
// only a kernel can do to a stream (signals, names, full queues) is in test_tcp.cpp.
#include <poll.h>

#include <atomic>
#include <cstring>
#include <functional>
#include <thread>
#include <vector>

#include "base/limits.hpp"
#include "test/fibers.hpp"
#include "test/harness.hpp"
#include "transport/handshake.hpp"
#include "transport/sim.hpp"
#include "transport/tcp.hpp"

using namespace drust;
using transport::Flow;
using transport::Stream;
using Bytes = std::vector<std::byte>;

namespace {

struct Pair {
  std::unique_ptr<Stream> client;
  std::unique_ptr<Stream> server;
};

// A transport, and what a test must be able to do with it.
class Rig {
 public:
  virtual ~Rig() = default;
  virtual Pair connect_pair() = 0;
  // Connects to where nobody listens; to where nobody answers (null: this rig cannot cut a link).
  virtual Status connect_to_nobody() = 0;
  virtual Result<std::unique_ptr<Stream>> connect_into_silence(std::uint32_t timeout_ms) = 0;
  // Both at the same time; returns when both have returned.
  virtual void together(const std::function<void()>& left, const std::function<void()>& right) = 0;
  // Of the caller's time, where both run together.
  virtual void pause(std::uint32_t pause_ms) = 0;
  // Until something has happened to the stream.
  virtual void let_happen(Stream& stream) = 0;
};

class TcpRig final : public Rig {
 public:
  Pair connect_pair() override {
    auto listener = transport::listen_tcp("127.0.0.1", 0);
    Pair pair;
    if (!CHECK(listener.ok())) return pair;
    auto client = transport::connect_tcp("127.0.0.1", listener.value()->port(), 1000);
    if (!CHECK(client.ok())) return pair;
    pair.client = std::move(client.value());
    while (pair.server == nullptr) {
      pollfd waiting{listener.value()->descriptor(), POLLIN, 0};
      (void)::poll(&waiting, 1, 1000);
      auto accepted = listener.value()->try_accept();
      if (!CHECK(accepted.ok())) return pair;
      pair.server = std::move(accepted.value());
    }
    pair.server->bound_silence(1000);
    return pair;
  }
  Status connect_to_nobody() override {
    std::uint16_t port = 0;
    if (auto listener = transport::listen_tcp("127.0.0.1", 0); listener.ok()) port = listener.value()->port();
    return transport::connect_tcp("127.0.0.1", port, 2000).status();
  }
  Result<std::unique_ptr<Stream>> connect_into_silence(std::uint32_t) override {
    return std::unique_ptr<Stream>();
  }
  void together(const std::function<void()>& left, const std::function<void()>& right) override {
    std::thread other(right);
    left();
    other.join();
  }
  void pause(std::uint32_t pause_ms) override { (void)::poll(nullptr, 0, static_cast<int>(pause_ms)); }
  void let_happen(Stream& stream) override {
    pollfd waiting{stream.descriptor(), POLLIN, 0};
    CHECK_EQ(::poll(&waiting, 1, 1000), 1);
  }
};

class SimRig final : public Rig {
 public:
  explicit SimRig(std::uint64_t seed) : network_(seed, 2) {}

  Pair connect_pair() override {
    auto listener = network_.listen(1, 7);
    Pair pair;
    auto client = network_.connect(0, 1, 7, 1000);
    if (!CHECK(listener.ok() && client.ok())) return pair;
    auto accepted = listener.value()->try_accept();
    if (!CHECK(accepted.ok() && accepted.value() != nullptr)) return pair;
    pair = {std::move(client.value()), std::move(accepted.value())};
    pair.server->bound_silence(1000);
    return pair;
  }
  Status connect_to_nobody() override { return network_.connect(0, 1, 9, 2000).status(); }
  Result<std::unique_ptr<Stream>> connect_into_silence(std::uint32_t timeout_ms) override {
    network_.deafen(0, 1, network_.now_us() + 60'000'000);
    return network_.connect(0, 1, 7, timeout_ms);
  }
  void together(const std::function<void()>& left, const std::function<void()>& right) override {
    Fibers fibers(network_, stacks_, 1);
    fibers.start(left);
    fibers.start(right);
    fibers_ = &fibers;
    CHECK(fibers.run());
  }
  void pause(std::uint32_t pause_ms) override { fibers_->sleep(pause_ms * 1000ULL); }
  void let_happen(Stream&) override {
    while (network_.step()) {
    }
  }

 private:
  using Fibers = test::Fibers;
  transport::SimNetwork network_;
  Fibers::Stacks stacks_;
  Fibers* fibers_ = nullptr;  // while two run together
};

void on_each(const std::function<void(Rig&)>& test) {
  TcpRig tcp;
  test(tcp);
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    SimRig simulated(seed);
    test(simulated);
  }
}

Bytes pattern(std::size_t count) {
  Bytes bytes(count);
  for (std::size_t index = 0; index < count; ++index)
    bytes[index] = static_cast<std::byte>((index * 31 + index / 251) & 0xff);
  return bytes;
}

iovec piece(Bytes& bytes) { return {bytes.data(), bytes.size()}; }

}  // namespace

TEST("a message sent in pieces arrives whole in other pieces") {
  on_each([](Rig& rig) {
    Pair pair = rig.connect_pair();
    Bytes sent = pattern(300'000);
    Bytes head(100'000);
    Bytes rest(sent.size() - head.size());
    rig.together(
        [&] {
          iovec parts[3] = {{sent.data(), 1}, {sent.data() + 1, 0}, {sent.data() + 1, sent.size() - 1}};
          CHECK(pair.client->send_all(parts).ok());
        },
        [&] {
          iovec parts[2] = {piece(head), piece(rest)};
          CHECK(pair.server->receive_all(parts).ok());
        });
    head.insert(head.end(), rest.begin(), rest.end());
    CHECK(head == sent);
  });
}

TEST("both directions of a stream carry bytes at the same time") {
  on_each([](Rig& rig) {
    Pair pair = rig.connect_pair();
    const auto talk = [](Stream& stream) {
      for (std::uint64_t round = 0; round < 50; ++round) {
        iovec out{&round, sizeof round};
        CHECK(stream.send_all({&out, 1}).ok());
        std::uint64_t heard = ~round;
        iovec in{&heard, sizeof heard};
        if (!CHECK(stream.receive_all({&in, 1}).ok())) return;
        CHECK_EQ(heard, round);
      }
    };
    rig.together([&] { talk(*pair.client); }, [&] { talk(*pair.server); });
  });
}

TEST("a stream that takes no more says would_block and nothing is lost") {
  on_each([](Rig& rig) {
    Pair pair = rig.connect_pair();
    Bytes sent = pattern(16 << 20);
    std::size_t taken = 0;
    for (;;) {
      const iovec part{sent.data() + taken, sent.size() - taken};
      const auto transfer = pair.client->try_send({&part, 1}, false);
      if (transfer.flow == Flow::would_block) break;
      if (!CHECK_EQ(transfer.flow, Flow::moved)) return;
      taken += transfer.bytes;
    }
    CHECK(taken > 0);
    CHECK(taken < sent.size());
    Bytes received(taken);
    iovec part = piece(received);
    CHECK(pair.server->receive_all({&part, 1}).ok());
    CHECK(std::memcmp(received.data(), sent.data(), taken) == 0);
    const iovec more = piece(received);
    CHECK_EQ(pair.server->try_receive({&more, 1}).flow, Flow::would_block);
    // And there is room again.
    iovec again{sent.data(), 1000};
    CHECK(pair.client->send_all({&again, 1}).ok());
  });
}

TEST("a peer that closes is lost at once to who waits for it") {
  on_each([](Rig& rig) {
    Pair pair = rig.connect_pair();
    pair.client->bound_silence(5000);
    const std::int64_t start_ms = pair.client->now_ms();
    Code code = Code::ok;
    rig.together(
        [&] {
          Bytes buffer(8);
          iovec part = piece(buffer);
          code = pair.client->receive_all({&part, 1}).code();
        },
        [&] { pair.server.reset(); });
    CHECK_EQ(code, Code::server_lost);
    CHECK(pair.client->now_ms() - start_ms < 500);
  });
}

TEST("what was sent before the end of a stream is received before it, and can be answered") {
  on_each([](Rig& rig) {
    Pair pair = rig.connect_pair();
    Bytes question = pattern(3000);
    Bytes heard(3000);
    Bytes answer(10);
    Bytes beyond(1);
    Code end = Code::ok;
    rig.together(
        [&] {
          iovec out = piece(question);
          CHECK(pair.client->send_all({&out, 1}).ok());
          pair.client->end_sending();
          iovec in = piece(answer);
          CHECK(pair.client->receive_all({&in, 1}).ok());
        },
        [&] {
          iovec in = piece(heard);
          CHECK(pair.server->receive_all({&in, 1}).ok());
          const iovec more = piece(beyond);
          end = pair.server->receive_some({&more, 1}).status().code();
          iovec out{question.data(), 10};
          CHECK(pair.server->send_all({&out, 1}).ok());
        });
    CHECK(heard == question);
    CHECK_EQ(end, Code::server_lost);
  });
}

TEST("an idle stream tells whether its peer is still there") {
  on_each([](Rig& rig) {
    Pair pair = rig.connect_pair();
    CHECK(pair.client->is_idle_and_open());
    Bytes one(1);
    iovec part = piece(one);
    CHECK(pair.server->send_all({&part, 1}).ok());
    rig.let_happen(*pair.client);
    CHECK(!pair.client->is_idle_and_open());  // nobody asked for that byte
    Pair other = rig.connect_pair();
    other.server.reset();
    rig.let_happen(*other.client);
    CHECK(!other.client->is_idle_and_open());
  });
}

TEST("a silent peer is an error after the bound, for a receiver and for a sender") {
  on_each([](Rig& rig) {
    Pair pair = rig.connect_pair();
    pair.client->bound_silence(150);
    Bytes buffer(8);
    iovec part = piece(buffer);
    std::int64_t start_ms = pair.client->now_ms();
    CHECK_EQ(pair.client->receive_all({&part, 1}).code(), Code::timed_out);
    CHECK(pair.client->now_ms() - start_ms >= 140);
    CHECK(pair.client->now_ms() - start_ms < 1000);
    Bytes much(16 << 20);
    part = piece(much);
    start_ms = pair.client->now_ms();
    CHECK_EQ(pair.client->send_all({&part, 1}).code(), Code::timed_out);
    CHECK(pair.client->now_ms() - start_ms < 2000);
  });
}

TEST("a stream with unread bytes that is closed resets the connection") {
  on_each([](Rig& rig) {
    Pair pair = rig.connect_pair();
    Bytes some(100);
    iovec part = piece(some);
    CHECK(pair.client->send_all({&part, 1}).ok());
    rig.let_happen(*pair.server);
    pair.server.reset();
    rig.let_happen(*pair.client);
    const iovec more = piece(some);
    CHECK_EQ(pair.client->try_receive({&more, 1}).flow, Flow::failed);
    CHECK_EQ(pair.client->try_send({&more, 1}, false).flow, Flow::failed);
  });
}

TEST("nobody at a port is an error at once; nobody who answers is one within the time for connecting") {
  on_each([](Rig& rig) {
    CHECK_EQ(rig.connect_to_nobody().code(), Code::server_lost);
    Pair pair = rig.connect_pair();  // a clock
    const std::int64_t start_ms = pair.client->now_ms();
    const auto silent = rig.connect_into_silence(200);
    if (silent.ok()) return;
    CHECK_EQ(silent.status().code(), Code::server_lost);
    CHECK(pair.client->now_ms() - start_ms >= 190);
    CHECK(pair.client->now_ms() - start_ms < 1000);
  });
}

TEST("two ends shake hands over a stream; a wrong token is refused over it") {
  on_each([](Rig& rig) {
    for (const bool is_same : {true, false}) {
      Pair pair = rig.connect_pair();
      const Bytes ours(kTokenBytes, std::byte{1});
      const Bytes theirs(kTokenBytes, is_same ? std::byte{1} : std::byte{2});
      const Code expected = is_same ? Code::ok : Code::unauthenticated;
      rig.together(
          [&] {
            transport::Handshake handshake(transport::Role::client, ours, 5, transport::draw_nonce());
            CHECK_EQ(transport::shake_hands(*pair.client, handshake, 1000).code(), expected);
          },
          [&] {
            transport::Handshake handshake(transport::Role::server, theirs, 5, transport::draw_nonce());
            CHECK_EQ(transport::shake_hands(*pair.server, handshake, 1000).code(), expected);
            const auto last_word = handshake.take_outgoing();
            iovec part{const_cast<std::byte*>(last_word.data()), last_word.size()};
            CHECK(pair.server->send_all({&part, 1}).ok());
          });
    }
  });
}

TEST("a server that trickles its handshake is given up in time") {
  on_each([](Rig& rig) {
    Pair pair = rig.connect_pair();
    const Bytes token(kTokenBytes, std::byte{1});
    std::atomic<bool> is_over{false};
    Code code = Code::ok;
    std::int64_t waited_ms = 0;
    rig.together(
        [&] {
          transport::Handshake handshake(transport::Role::client, token, 0, transport::draw_nonce());
          const std::int64_t start_ms = pair.client->now_ms();
          code = transport::shake_hands(*pair.client, handshake, 300).code();
          waited_ms = pair.client->now_ms() - start_ms;
          is_over = true;
        },
        [&] {
          transport::Hello hello;
          hello.role = static_cast<std::uint8_t>(transport::Role::server);
          for (std::size_t index = 0; index < sizeof hello && !is_over; ++index) {
            iovec part{reinterpret_cast<std::byte*>(&hello) + index, 1};
            if (!pair.server->send_all({&part, 1}).ok()) return;
            rig.pause(60);  // slow is the point here
          }
        });
    CHECK_EQ(code, Code::timed_out);
    CHECK(waited_ms >= 290);
    CHECK(waited_ms < 1000);
  });
}

TEST("a server that falls silent in the middle of a handshake is given up in time") {
  on_each([](Rig& rig) {
    Pair pair = rig.connect_pair();
    const Bytes token(kTokenBytes, std::byte{1});
    Code code = Code::ok;
    std::int64_t waited_ms = 0;
    rig.together(
        [&] {
          transport::Handshake handshake(transport::Role::client, token, 0, transport::draw_nonce());
          const std::int64_t start_ms = pair.client->now_ms();
          code = transport::shake_hands(*pair.client, handshake, 400).code();
          waited_ms = pair.client->now_ms() - start_ms;
        },
        [&] {
          transport::Hello hello;
          hello.role = static_cast<std::uint8_t>(transport::Role::server);
          rig.pause(300);
          iovec part{&hello, sizeof hello};
          CHECK(pair.server->send_all({&part, 1}).ok());
        });
    CHECK_EQ(code, Code::timed_out);
    CHECK(waited_ms >= 390);
    CHECK(waited_ms < 600);  // and not as long again, from the greeting on
  });
}
