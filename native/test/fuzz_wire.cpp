// Spoiled frames against a server: nothing but what a frame validly names may change, nothing may leak, and
// who behaves is served afterwards.
//
//     fuzz_wire [FRAMES [SEED [SOCKET_FRAMES]]]
//
// FRAMES spoiled frames reach the parser through connections in memory, whose partial transfers are dictated
// too (what lies behind a frame that closes its connection reaches nobody and is not counted); SOCKET_FRAMES go
// through a real server. Each kFramesPerSeed of them begin anew from a seed of their own, SEED and its successors:
// everything in memory follows from it, and `fuzz_wire 1 SEED 0` runs that one again. The oracle is a second
// reader of the same bytes: it cuts them into frames, and says what each may change in a copy of every live
// block; then the heap must equal the copy, byte by byte.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <thread>

#include "test/frames.hpp"
#include "test/host.hpp"
#include "test/visitor.hpp"
#include "transport/tcp.hpp"

using namespace drust;
using test::Bytes;
using test::Dice;
using test::Host;
using test::Visitor;

namespace {

constexpr std::uint64_t kFramesPerSeed = 10'000;

[[noreturn]] void fail(const char* what, std::uint64_t seed, std::uint64_t round) {
  std::fprintf(stderr, "fuzz_wire: %s (seed %llu, connection %llu; again: fuzz_wire 1 %llu)\n", what,
               static_cast<unsigned long long>(seed), static_cast<unsigned long long>(round),
               static_cast<unsigned long long>(seed));
  std::exit(1);
}

// The live blocks and what they must hold.
class Garden {
 public:
  Garden(Host& host, Dice& dice) : host_(host), dice_(dice) { renew(); }

  struct Plant {
    GlobalPointer pointer;
    Bytes whole;  // the block without its header
    std::uint64_t buffer_offset;
    std::uint64_t buffer_bytes;
  };

  void renew() {
    while (plants_.size() < kPlants) {
      Bytes value;
      test::append_random(value, dice_, 1 + dice_.below(dice_.once_in(32) ? 40'000 : 1500));
      Plant plant;
      plant.pointer = host_.make(value);
      plant.whole = whole_of(plant.pointer);
      plant.buffer_offset = host_.block(plant.pointer.address).buffers()[0].offset_bytes;
      plant.buffer_bytes = value.size();
      plants_.emplace(plant.pointer.address.raw(), std::move(plant));
    }
  }

  const Plant& any() {
    auto place = plants_.begin();
    std::advance(place, static_cast<std::ptrdiff_t>(dice_.below(plants_.size())));
    return place->second;
  }

  // What a server that reads these bytes may do to the plants. `ends_at_control`: control requests are never
  // answered. Returns where the last header ends that it looks at.
  std::size_t expect(const Bytes& bytes, bool ends_at_control) {
    std::size_t at = 0;
    std::size_t seen = 0;
    while (bytes.size() - at >= sizeof(wire::RequestHeader)) {
      wire::RequestHeader header;
      std::memcpy(&header, bytes.data() + at, sizeof header);
      seen = at += sizeof header;
      if (!wire::check(header).ok() || bytes.size() - at < header.body_bytes) return seen;
      const std::byte* body = bytes.data() + at;
      at += header.body_bytes;
      const auto operation = static_cast<wire::Operation>(header.operation);
      if (operation == wire::Operation::write_region) expect_write(header, body);
      if (operation == wire::Operation::free_blocks && !expect_frees(body, header.body_bytes)) return seen;
      if (operation == wire::Operation::read_blocks && !is_list(body, header.body_bytes)) return seen;
      if (operation == wire::Operation::control && ends_at_control) return seen;
    }
    return seen;
  }

  [[nodiscard]] bool is_as_expected() const {
    for (const auto& [address, plant] : plants_) {
      if (!host_.is_live(plant.pointer)) return false;
      const std::byte* start = host_.partition->readable(plant.pointer.address.offset_bytes());
      if (std::memcmp(start + sizeof(heap::BlockHeader), plant.whole.data(), plant.whole.size()) != 0) return false;
    }
    return true;
  }
  [[nodiscard]] std::uint64_t size() const noexcept { return plants_.size(); }
  [[nodiscard]] bool has(const GlobalPointer& pointer) const {
    return plants_.contains(pointer.address.raw());
  }

 private:
  static constexpr std::size_t kPlants = 24;

  [[nodiscard]] Bytes whole_of(const GlobalPointer& pointer) const {
    const std::byte* start = host_.partition->readable(pointer.address.offset_bytes());
    return {start + sizeof(heap::BlockHeader), start + pointer.extent_bytes};
  }

  void expect_write(const wire::RequestHeader& header, const std::byte* body) {
    const auto found = plants_.find(header.address);
    if (found == plants_.end()) return;
    Plant& plant = found->second;
    const wire::Region& region = header.region;
    if (plant.pointer.colour != header.colour || plant.pointer.extent_bytes != header.extent_bytes) return;
    if (header.body_bytes == 0 || !wire::total_bytes(region, plant.buffer_bytes).ok()) return;
    const std::uint64_t start = plant.buffer_offset - sizeof(heap::BlockHeader) + region.offset_bytes;
    for (std::uint64_t chunk = 0; chunk < region.count; ++chunk) {
      for (std::uint64_t index = 0; index < region.chunk_bytes; ++index) {
        plant.whole.at(start + chunk * region.stride_bytes + index) = *body++;
      }
    }
  }

  // False if the list of blocks to be read is malformed: nothing behind it is read.
  [[nodiscard]] bool is_list(const std::byte* body, std::uint64_t bytes) const {
    std::vector<wire::BlockItem> items(bytes / sizeof(wire::BlockItem));
    std::memcpy(static_cast<void*>(items.data()), body, bytes);
    std::uint64_t total_bytes = 0;
    for (const wire::BlockItem& item : items) {
      total_bytes += item.extent_bytes + sizeof(wire::Trailer);
      const bool is_here = host_.partition->is_local(Address(item.address));
      if (!wire::check(item).ok() || !is_here || total_bytes > kFrameBodyBytesMax) return false;
    }
    return true;
  }

  // False if the batch is malformed: nothing behind it is read.
  bool expect_frees(const std::byte* body, std::uint64_t bytes) {
    std::vector<wire::FreeItem> items(bytes / sizeof(wire::FreeItem));
    std::memcpy(static_cast<void*>(items.data()), body, bytes);
    if (!wire::check(items).ok()) return false;
    for (const wire::FreeItem& item : items) {
      const bool is_notice = (item.flags & wire::FreeItem::kNotice) != 0;  // about blocks of others
      if (is_notice == host_.partition->is_local(Address(item.address))) return false;
    }
    for (const wire::FreeItem& item : items) {
      if (item.flags == wire::FreeItem::kSuccessor) continue;
      const auto found = plants_.find(item.address);
      if (found != plants_.end() && found->second.pointer.colour == item.colour) plants_.erase(found);
    }
    return true;
  }

  Host& host_;
  Dice& dice_;
  std::map<std::uint64_t, Plant> plants_;  // by address
};

struct Field {
  std::uint64_t seed;
  Dice dice;
  Host host{3};
  Host elsewhere{4};
  Garden garden{host, dice};
  GlobalPointer record;
  Bytes sample;  // a block of another server, with a child there
  std::uint64_t claimed_bytes = 0;

  explicit Field(std::uint64_t given) : seed(given), dice(given) {
    const GlobalPointer child{Address::make(4, 4096), (1ULL << 48) | 77, 64};
    const std::uint64_t sizes[2] = {100, 30};
    heap::BlockShape shape;
    shape.child_count = 1;
    shape.meta_bytes = 9;
    shape.buffer_bytes = sizes;
    const Address address = elsewhere.heap->allocate(shape).value();
    elsewhere.block(address).children()[0] = {child.address.raw(), child.colour, child.extent_bytes, 0};
    const GlobalPointer made = elsewhere.heap->publish(address);
    const std::byte* start = elsewhere.partition->readable(made.address.offset_bytes());
    sample.assign(start, start + made.extent_bytes);
    new_record();
    claimed_bytes = host.partition->usage().claimed_bytes;
  }

  void new_record() { record = tasks::Queue::make_record(*host.heap, 4).value(); }

  // The bytes of one connection; `spoiled` gets where each spoiled frame begins.
  Bytes talk(std::vector<std::size_t>& spoiled) {
    Bytes bytes;
    spoiled.clear();
    for (std::uint64_t count = 1 + dice.below(4); count > 0; --count) {
      const Garden::Plant& plant = garden.any();
      Bytes frame = test::any_frame(dice, plant.pointer, plant.buffer_bytes, record, sample);
      if (!dice.once_in(3)) {
        const Bytes whole = frame;
        test::spoil(dice, frame);
        if (frame != whole) spoiled.push_back(bytes.size());
      }
      bytes.insert(bytes.end(), frame.begin(), frame.end());
    }
    return bytes;
  }

  // Frees what a connection has left by right: tasks, completions, blocks that were put here.
  void tidy(const Bytes& output, std::uint64_t round) {
    for (auto entry = host.queue->take(0); entry.ok(); entry = host.queue->take(0)) {
      (void)host.heap->free_shallow(entry.value().task);
      host.queue->finish(entry.value());
    }
    if (!host.is_live(record)) {
      new_record();  // a spoiled free can name it
    } else if (const auto settled = tasks::Queue::wait(*host.partition, record, 0); settled.ok()) {
      (void)host.heap->free_shallow(settled.value()->completion());
      (void)host.heap->free_shallow(record);
      new_record();
    }
    for (std::size_t at = 0; at < output.size();) {
      wire::ReplyHeader reply;
      if (output.size() - at < sizeof reply) fail("a reply is cut short", seed, round);
      std::memcpy(&reply, output.data() + at, sizeof reply);
      if (!wire::check(reply, static_cast<wire::Operation>(reply.operation)).ok())
        fail("a reply is malformed", seed, round);
      at += sizeof reply + reply.body_bytes;
      if (at > output.size()) fail("a reply is cut short", seed, round);
      const bool is_put =
          reply.code == 0 && reply.operation == static_cast<std::uint8_t>(wire::Operation::put_block);
      if (is_put) (void)host.heap->free_shallow({Address(reply.address), reply.colour, reply.extent_bytes});
    }
  }

  void check(std::uint64_t round) {
    if (!garden.is_as_expected()) fail("a block changed that no frame named", seed, round);
    garden.renew();
  }

  // The replicas kept for another server, which are there by right.
  void free_replicas() {
    std::vector<GlobalPointer> replicas;
    host.partition->each_live_block([&](const heap::BlockInfo& block) {
      if (heap::owner_kind(block.owner) == heap::OwnerKind::replica) replicas.push_back(block.pointer);
    });
    for (const GlobalPointer& replica : replicas) (void)host.heap->free_shallow(replica);
  }

  void check_leaks(std::uint64_t round) {
    free_replicas();
    if (host.partition->live_blocks() != garden.size() + 1) fail("a block was left behind", seed, round);
    // Blocks that were never published are not live, but take room.
    if (host.partition->usage().claimed_bytes > claimed_bytes + (6ULL << 20))
      fail("room was left behind", seed, round);
  }
};

void check_good_visitor(Field& field, server::Operations& operations, std::uint64_t round) {
  Visitor visitor(operations);
  const Garden::Plant& plant = field.garden.any();
  visitor.pipe.say(test::request(wire::Operation::read_block, plant.pointer));
  visitor.go();
  const auto reply = visitor.pipe.hear<wire::ReplyHeader>();
  (void)visitor.pipe.hear(sizeof(heap::BlockHeader));
  const bool is_served = reply.code == 0 && visitor.pipe.hear(plant.whole.size()) == plant.whole;
  if (!is_served) fail("a good client was not served", field.seed, round);
}

// Until `frames` spoiled ones have been looked at. Returns how many were.
std::uint64_t fuzz_memory(Field& field, std::uint64_t frames) {
  Dice& dice = field.dice;
  server::Operations operations(*field.host.heap, *field.host.queue, {[](const GlobalPointer&, std::uint64_t) {}});
  std::vector<std::size_t> spoiled;
  std::uint64_t seen = 0;
  for (std::uint64_t round = 0; seen < frames; ++round) {
    const Bytes bytes = field.talk(spoiled);
    const bool is_stranger = dice.once_in(16);
    Visitor visitor(operations, !is_stranger);
    if (dice.once_in(2)) visitor.pipe.step_bytes = 1 + dice.below(400);
    if (dice.once_in(4)) visitor.pipe.room_bytes = dice.below(3000);
    if (is_stranger) {
      transport::Hello hello;
      hello.role = 1;
      hello.server = 3;
      Bytes greeting;
      test::append(greeting, hello);
      test::append(greeting, transport::Proof{});
      test::spoil(dice, greeting);
      visitor.pipe.say(greeting.data(), greeting.size());
    } else {
      const std::size_t end = field.garden.expect(bytes, true);
      seen += static_cast<std::uint64_t>(std::count_if(spoiled.begin(), spoiled.end(), [&](std::size_t start) {
        return start + sizeof(wire::RequestHeader) <= end;
      }));
    }
    // In two parts, so that the end may fall anywhere.
    const std::size_t cut = dice.below(bytes.size() + 1);
    visitor.pipe.say(bytes.data(), cut);
    (void)visitor.go();
    visitor.pipe.room_bytes = 1ULL << 40;
    visitor.pipe.say(bytes.data() + cut, bytes.size() - cut);
    auto wants = visitor.go();
    if (wants == server::Connection::Wants::control) (void)visitor.connection->take_control();
    visitor.pipe.has_ended = true;
    if (wants == server::Connection::Wants::event) wants = visitor.go();
    if (is_stranger && visitor.connection->is_authenticated()) fail("a stranger got in", field.seed, round);
    visitor.connection.reset();
    if (!is_stranger) field.tidy(visitor.pipe.output, round);
    field.check(round);
    if (round % 512 == 0) {
      field.check_leaks(round);
      check_good_visitor(field, operations, round);
    }
  }
  field.check_leaks(0);
  return seen;
}

void fuzz_sockets(Field& field, std::uint64_t frames) {
  if (frames == 0) return;
  if (!field.host.serve().ok()) fail("the server did not start", field.seed, 0);
  field.elsewhere.know(field.host);
  std::thread control_plane([&] {
    for (auto request = field.host.server->take_control(60'000); request.ok();
         request = field.host.server->take_control(60'000)) {
      field.host.server->reply_control(request.value().id, std::move(request.value().body));
    }
  });
  std::vector<std::size_t> spoiled;
  for (std::uint64_t round = 0; frames > 0; ++round) {
    Bytes bytes = field.talk(spoiled);
    frames -= std::min<std::uint64_t>(frames, spoiled.size());
    auto stream = transport::connect_tcp("127.0.0.1", field.host.server->port(), 2000);
    transport::Handshake handshake(transport::Role::client, test::test_token(), 3, transport::draw_nonce());
    if (!stream.ok() || !transport::shake_hands(*stream.value(), handshake, 2000).ok())
      fail("no connection", field.seed, round);
    (void)field.garden.expect(bytes, false);
    stream.value()->bound_silence(2000);
    iovec part{bytes.data(), bytes.size()};
    (void)stream.value()->send_all({&part, 1});  // it may be closed on us
    stream.value()->end_sending();
    // Until the server has closed, and so has done all it will. A reset loses replies, hence they are not
    // looked at.
    Bytes buffer(1 << 16);
    const iovec place{buffer.data(), buffer.size()};
    auto received = stream.value()->receive_some({&place, 1});
    while (received.ok()) received = stream.value()->receive_some({&place, 1});
    if (received.status().code() == Code::timed_out) fail("a connection was left hanging", field.seed, round);
    field.tidy({}, round);
    for (const heap::BlockInfo& block : field.host.partition->largest_blocks(1000)) {
      if (field.garden.has(block.pointer) || block.pointer.address == field.record.address) continue;
      (void)field.host.heap->free_shallow(block.pointer);  // it was put here
    }
    field.check(round);
    if (round % 64 == 0 && !field.elsewhere.peers->ping(3).ok())
      fail("a good client was not served", field.seed, round);
  }
  field.host.server->stop();
  control_plane.join();
  field.host.server.reset();
  field.check_leaks(0);
}

std::uint64_t number(int argc, char** argv, int index, std::uint64_t otherwise) {
  return argc > index ? std::strtoull(argv[index], nullptr, 10) : otherwise;
}

}  // namespace

int main(int argc, char** argv) {
  const std::uint64_t frames = number(argc, argv, 1, 100'000);
  const std::uint64_t first_seed = number(argc, argv, 2, 1);
  const std::uint64_t socket_frames = number(argc, argv, 3, frames / 300);
  std::uint64_t seen = 0;
  std::uint64_t rejected = 0;
  for (std::uint64_t seed = first_seed; seen < frames; ++seed) {
    Field field(seed);
    seen += fuzz_memory(field, kFramesPerSeed);
    if (seed == first_seed) fuzz_sockets(field, socket_frames);
    rejected += field.host.counted(heap::Counter::frames_rejected);
  }
  std::printf("fuzz_wire: %llu spoiled frames in memory, %llu over sockets, from seed %llu on: %llu rejected\n",
              static_cast<unsigned long long>(seen), static_cast<unsigned long long>(socket_frames),
              static_cast<unsigned long long>(first_seed), static_cast<unsigned long long>(rejected));
  return 0;
}
