// Runtime.open_tied: the children tied to a parent here. fetch_tied and take_tied: those of one elsewhere, together.
//
// Several processes of a host may want the same children at once, in any order. So no process waits for
// another's fetch while others may wait for its own: it first takes what is there and becomes the leader of
// what nobody fetches, reads that with one request, enters it, and only then waits for the rest.
#include <nanobind/nanobind.h>

#include <vector>

#include "bind/pin.hpp"
#include "bind/pointer.hpp"
#include "bind/runtime.hpp"

namespace drust::bind {
namespace {

// A child on its way here.
struct Fetch {
  GlobalPointer remote;
  GlobalPointer local;
  std::uint32_t entry = 0;
  enum class State : std::uint8_t { wanted, leading, unshared, elsewhere, ready } state = State::wanted;
};

void acquire(Runtime& runtime, Fetch& fetch, std::uint32_t timeout_ms, Status& status) {
  const auto acquired = runtime.copies->acquire(fetch.remote, timeout_ms);
  if (acquired.ok()) {
    fetch.entry = acquired.value().entry;
    fetch.local = acquired.value().local;
    fetch.state = acquired.value().is_leader ? Fetch::State::leading : Fetch::State::ready;
  } else if (acquired.status().code() == Code::full) {
    fetch.state = Fetch::State::unshared;
  } else if (timeout_ms == 0 && acquired.status().code() == Code::timed_out) {
    fetch.state = Fetch::State::elsewhere;
  } else {
    status = acquired.status();
  }
}

// Reads all that this process leads, and what is not shared.
Status read(Runtime& runtime, std::vector<Fetch>& fetches) {
  std::vector<GlobalPointer> remote;
  for (const Fetch& fetch : fetches) {
    if (fetch.state == Fetch::State::leading || (fetch.state == Fetch::State::unshared && fetch.local.is_null()))
      remote.push_back(fetch.remote);
  }
  if (remote.empty()) return {};
  const auto here = runtime.peers->read_blocks(remote);
  if (!here.ok()) return here.status();
  std::size_t next = 0;
  for (Fetch& fetch : fetches) {
    if (fetch.state == Fetch::State::leading) {
      fetch.local = here.value()[next++];
      runtime.copies->publish(fetch.entry, fetch.local);
      fetch.state = Fetch::State::ready;
    } else if (fetch.state == Fetch::State::unshared && fetch.local.is_null()) {
      fetch.local = here.value()[next++];
    }
  }
  return {};
}

Status fetch_all(Runtime& runtime, std::vector<Fetch>& fetches) {
  Status status;
  for (Fetch& fetch : fetches) {
    if (status.ok()) acquire(runtime, fetch, 0, status);
  }
  if (status.ok()) status = read(runtime, fetches);
  for (Fetch& fetch : fetches) {
    if (!status.ok() || fetch.state != Fetch::State::elsewhere) continue;
    acquire(runtime, fetch, kPeerTimeoutMs, status);
    if (status.ok()) status = read(runtime, fetches);  // its leader has died: usually there is nothing to read
  }
  return status;
}

void give_up(Runtime& runtime, const Fetch& fetch) {
  if (fetch.state == Fetch::State::leading) runtime.copies->abandon(fetch.entry);
  if (fetch.state == Fetch::State::ready) runtime.copies->release(fetch.entry);
  if (fetch.state == Fetch::State::unshared && !fetch.local.is_null()) {
    static_cast<void>(runtime.heap->free_shallow(fetch.local));
  }
}

// The blocks of a parent of this partition, for a Pin that answers for them: 0 messages.
nb::tuple open_tied(Runtime& runtime, nb::handle parent) {
  if (!is_pin(parent.ptr()) || !is_mapped(as_pin(parent.ptr()))) throw nb::value_error("the parent is no mapped block");
  const auto children = block_of(as_pin(parent.ptr())).children();
  nb::object pins = nb::steal(PyTuple_New(static_cast<Py_ssize_t>(children.size())));
  if (!pins.is_valid()) throw nb::python_error();
  for (std::size_t i = 0; i < children.size(); ++i) {
    const GlobalPointer pointer = children[i].pointer();
    static_cast<void>(unwrap(runtime.partition->find(pointer.address, pointer.colour)));
    PyObject* pin = make_pin(pointer, pointer, false, OnRelease::nothing, 0);
    if (pin == nullptr) throw nb::python_error();
    PyTuple_SET_ITEM(pins.ptr(), static_cast<Py_ssize_t>(i), pin);
  }
  return nb::borrow<nb::tuple>(pins);
}

// Copies shared by the host: 0 messages for those that are here, one read for all others.
nb::list fetch_tied(Runtime& runtime, nb::list pointers) {
  std::vector<Fetch> fetches;
  for (nb::handle pointer : pointers) fetches.push_back({.remote = to_pointer(pointer), .local = {}});
  const Status status = [&] {
    nb::gil_scoped_release unlocked;
    Status fetched = fetch_all(runtime, fetches);
    if (!fetched.ok()) {
      for (const Fetch& fetch : fetches) give_up(runtime, fetch);
    }
    return fetched;
  }();
  unwrap(status);
  nb::list pins;
  for (const Fetch& fetch : fetches) {
    const bool is_shared = fetch.state == Fetch::State::ready;
    pins.append(nb::steal(make_pin(is_shared ? fetch.remote : fetch.local, fetch.local, false,
                                   is_shared ? OnRelease::release_copy : OnRelease::free_shallow, fetch.entry)));
  }
  return pins;
}

// Blocks of this process's own, under fresh colours: one read. The old ones stay until the caller frees them.
nb::list take_tied(Runtime& runtime, nb::list pointers) {
  std::vector<GlobalPointer> remote;
  for (nb::handle pointer : pointers) remote.push_back(to_pointer(pointer));
  auto moved = [&]() -> Result<std::vector<GlobalPointer>> {
    nb::gil_scoped_release unlocked;
    if (remote.empty()) return std::vector<GlobalPointer>{};
    return runtime.peers->read_blocks(remote);
  }();
  nb::list pins;
  for (const GlobalPointer& block : unwrap(std::move(moved))) {
    pins.append(nb::steal(make_pin(block, block, false, OnRelease::free_tree, 0)));
  }
  runtime.count(heap::Counter::moves_in);
  return pins;
}

}  // namespace

void register_groups(nb::module_& module) {
  nb::handle runtime = module.attr("Runtime");
  runtime.attr("open_tied") = nb::cpp_function(&open_tied, nb::is_method(), nb::scope(runtime), nb::name("open_tied"),
                                               nb::arg("parent"));
  runtime.attr("fetch_tied") = nb::cpp_function(&fetch_tied, nb::is_method(), nb::scope(runtime),
                                                nb::name("fetch_tied"), nb::arg("pointers"));
  runtime.attr("take_tied") = nb::cpp_function(&take_tied, nb::is_method(), nb::scope(runtime),
                                               nb::name("take_tied"), nb::arg("pointers"));
}

}  // namespace drust::bind
