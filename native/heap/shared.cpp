#include "heap/shared.hpp"

#include <unordered_map>

#include "base/kill_point.hpp"

namespace drust::heap {
namespace {

SharedLife* life_of(const Block& block) noexcept {
  if (block.header().codec != kSharedCodec || block.header().buffer_count != 1) return nullptr;
  if (block.buffer(0).size() < sizeof(SharedLife)) return nullptr;
  return reinterpret_cast<SharedLife*>(block.buffer(0).data());
}

struct Mark {
  GlobalPointer object;
  const SharedLife* life;
  std::uint64_t made[kRoles];
  bool has_holds[kRoles] = {false, false};
};

}  // namespace

SharedLife* find_shared(const Partition& partition, const GlobalPointer& pointer) noexcept {
  if (!partition.is_local(pointer.address)) return nullptr;
  const Result<Block> found = partition.find(pointer.address, pointer.colour);
  return found.ok() ? life_of(Block(partition.writable(pointer.address.offset_bytes()))) : nullptr;
}

GlobalPointer find_held(const Partition& partition, const GlobalPointer& hold, std::uint32_t* role) noexcept {
  if (!partition.is_local(hold.address)) return {};
  const Result<Block> found = partition.find(hold.address, hold.colour);
  if (!found.ok() || found.value().header().codec != kHoldCodec || found.value().header().child_count != 1) return {};
  const ChildPointer child = found.value().children()[0];
  // Whoever freed it meanwhile may have left other bytes.
  if (found.value().header().state.load(std::memory_order_acquire) != hold.colour) return {};
  if ((child.flags & ChildPointer::kHeld) == 0) return {};
  if (role != nullptr) *role = (child.flags & ChildPointer::kOtherEnd) != 0 ? 1 : 0;
  return child.pointer();
}

Result<GlobalPointer> make_hold(Heap& heap, const GlobalPointer& object, std::uint32_t role) {
  SharedLife* life = find_shared(heap.partition(), object);
  if (life == nullptr || role >= kRoles) return Status(Code::not_found, "no shared object there");
  const Result<Address> address = heap.allocate({.codec = kHoldCodec, .child_count = 1, .buffer_bytes = {}});
  if (!address.ok()) return address.status();
  const Block block(heap.partition().writable(address.value().offset_bytes()));
  block.children()[0] = {object.address.raw(), object.colour, object.extent_bytes,
                         ChildPointer::kHeld | (role == 0 ? 0 : ChildPointer::kOtherEnd)};
  life->made[role].fetch_add(1);
  kill_point("shared.hold.counted");
  return heap.publish(address.value());
}

Result<GlobalPointer> make_first_hold(Heap& heap, const GlobalPointer& object, std::uint32_t role) {
  Result<GlobalPointer> hold = make_hold(heap, object, role);
  kill_point("shared.hold.made");
  // Killed before this, both are the process's own.
  if (hold.ok()) heap.set_owner(object, owner_word(OwnerKind::holds, {}));
  return hold;
}

bool leave_shared(Partition& partition, const GlobalPointer& object) noexcept {
  SharedLife* life = find_shared(partition, object);
  if (life == nullptr) return false;
  if (life->frees_itself != 0 && life->made[0].load() + life->made[1].load() == 1) return true;
  life->is_marked.store(1);
  partition.add_mark();
  return false;
}

std::vector<Looked> look_at_marked(const Partition& partition) {
  std::unordered_map<std::uint64_t, Mark> marks;
  partition.each_live_block([&](const BlockInfo& block) {
    if (block.codec != kSharedCodec) return;
    SharedLife* life = find_shared(partition, block.pointer);
    if (life == nullptr || life->is_marked.load() == 0) return;
    // First: a hold that is freed from here on marks it again.
    life->is_marked.store(0);
    marks.emplace(block.pointer.address.raw(), Mark{block.pointer, life, {life->made[0].load(), life->made[1].load()}});
  });
  if (marks.empty()) return {};
  partition.each_live_block([&](const BlockInfo& block) {
    if (block.codec != kHoldCodec) return;
    std::uint32_t role = 0;
    const GlobalPointer object = find_held(partition, block.pointer, &role);
    const auto found = marks.find(object.address.raw());
    if (found != marks.end() && found->second.object.colour == object.colour) found->second.has_holds[role] = true;
  });
  std::vector<Looked> looked;
  for (auto& [address, mark] : marks) {
    Looked& result = looked.emplace_back();
    result.object = mark.object;
    for (std::uint32_t role = 0; role < kRoles; ++role)
      result.has_holds[role] = mark.has_holds[role] || mark.life->made[role].load() != mark.made[role];
  }
  return looked;
}

}  // namespace drust::heap
