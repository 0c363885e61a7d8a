// One server of the simulated cluster, from its start to its crash or to the end: the production code of both
// sides (Connection and Operations, Peers) over simulated streams.
//
// In place of the epoll loop of server/loop.* stands changed(): an event of the network drives the connection
// at once. Whoever sleeps on the site is woken when a task or a completion
// has arrived, as by a futex.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "server/connection.hpp"
#include "server/loop.hpp"
#include "server/operations.hpp"
#include "server/peers.hpp"
#include "test/fibers.hpp"
#include "test/host.hpp"
#include "test/sim/inspector.hpp"
#include "test/sim/machine.hpp"
#include "transport/sim.hpp"

namespace drust::test {

class Site final : public transport::SimWatcher {
 public:
  struct World {  // outlives the site
    transport::SimNetwork& network;
    Fibers& fibers;
    SimBug bug;
    Inspector::Notes& notes;
  };

  Site(World world, Machine& given, std::uint64_t given_epoch)
      : machine(given), epoch(given_epoch), world_(world) {
    operations_ = std::make_unique<server::Operations>(
        *machine.heap, *machine.queue,
        server::Operations::Elsewhere{[this](const GlobalPointer& block, std::uint64_t) { free_later(block, false); }});
    server::PeersOptions options;
    options.token = test_token();
    options.has_sweeper = false;  // a fiber of the simulation sweeps
    options.dial = [this](const heap::Endpoint& endpoint,
                          std::uint32_t timeout_ms) -> Result<std::unique_ptr<transport::Stream>> {
      if (!is_up_) return Status(Code::closed, "this server has crashed");
      return world_.network.connect(id(), static_cast<std::uint32_t>(std::stoul(endpoint.host)), endpoint.port,
                                    timeout_ms);
    };
    peers = std::make_unique<server::Peers>(*machine.heap, std::move(options));
    auto listening = world_.network.listen(id(), port());
    ensure(listening.ok(), "a simulated port is free");
    listener_ = std::move(listening.value());
    transport::SimNetwork::watch(*listener_, this);
  }
  ~Site() = default;
  Site(const Site&) = delete;
  Site& operator=(const Site&) = delete;

  [[nodiscard]] ServerId id() const noexcept { return machine.server(); }
  [[nodiscard]] std::uint16_t port() const noexcept { return static_cast<std::uint16_t>(1000 + epoch); }
  [[nodiscard]] bool is_up() const noexcept { return is_up_; }
  [[nodiscard]] bool is_here(const GlobalPointer& pointer) const noexcept {
    return pointer.address.server() == id();
  }

  void free_later(const GlobalPointer& remote, bool is_shallow = true) {
    peers->free_later(remote, is_shallow);
    has_frees = true;
    wake();
  }

  // Until something has happened here, or for `duration_us`.
  void doze(transport::SimTime duration_us) {
    sleepers_.push_back(world_.fibers.caller());
    world_.fibers.wait(world_.network.now_us() + duration_us);
  }
  void wake() {
    for (void* sleeper : std::exchange(sleepers_, {})) world_.fibers.wake(sleeper);
  }

  void crash(bool is_silent) {
    is_up_ = false;
    world_.network.crash(id(), is_silent);
    close();
    wake();
  }
  // Connections that have not proved themselves in time, as Loop closes them.
  void close_strangers() {
    for (const auto& served : served_) {
      if (served->connection == nullptr || served->connection->is_authenticated()) continue;
      if (served->since_us + server::kHandshakeTimeoutMs * 1000ULL <= world_.network.now_us())
        served->connection.reset();
    }
  }
  void close() {
    listener_.reset();
    served_.clear();
  }
  [[nodiscard]] std::size_t connections() const noexcept {
    std::size_t count = 0;
    for (const auto& served : served_) count += served->connection != nullptr ? 1U : 0U;
    return count;
  }

  void changed(bool, bool, bool) override {
    for (auto accepted = listener_->try_accept(); accepted.ok() && accepted.value() != nullptr;
         accepted = listener_->try_accept()) {
      auto served = std::make_unique<Served>(*this);
      transport::SimNetwork::watch(*accepted.value(), served.get());
      auto inspected =
          std::make_unique<Inspector>(std::move(accepted.value()), machine, world_.bug, world_.notes, has_news_);
      served->connection = std::make_unique<server::Connection>(std::move(inspected), *operations_, test_token());
      served->since_us = world_.network.now_us();
      served_.push_back(std::move(served));
      served_.back()->drive();
    }
  }

  Machine& machine;
  const std::uint64_t epoch;
  std::unique_ptr<server::Peers> peers;
  bool has_frees = false;  // that no request has taken along, perhaps

 private:
  struct Served final : transport::SimWatcher {
    explicit Served(Site& given) : site(given) {}
    void changed(bool is_readable, bool is_writable, bool is_ending) override {
      if (connection == nullptr) return;
      connection->set_ready(is_readable, is_writable, is_ending);
      drive();
    }
    void drive() {
      for (;;) {
        const auto wants = connection->advance();
        if (wants == server::Connection::Wants::event) break;
        if (wants == server::Connection::Wants::control) {
          connection->answer_control(connection->take_control());
        } else if (wants == server::Connection::Wants::close) {
          connection.reset();
          break;
        }
      }
      if (std::exchange(site.has_news_, false)) site.wake();
    }
    Site& site;
    std::unique_ptr<server::Connection> connection;
    transport::SimTime since_us = 0;
  };

  World world_;
  bool is_up_ = true;
  bool has_news_ = false;  // a task or a completion has arrived
  std::unique_ptr<server::Operations> operations_;
  std::unique_ptr<transport::Listener> listener_;
  std::vector<std::unique_ptr<Served>> served_;
  std::vector<void*> sleepers_;
};

}  // namespace drust::test
