#include "bind/handles.hpp"

#define DRUST_IMPORTS_NUMPY
#include "bind/numpy_api.hpp"

#include "bind/arrow_column.hpp"
#include "bind/box.hpp"
#include "bind/hooks.hpp"
#include "bind/pin.hpp"
#include "bind/revoke.hpp"
#include "bind/shared.hpp"

namespace drust::bind {

bool register_handles(PyObject* module) {
  if (PyArray_ImportNumPyAPI() < 0) return false;
  return register_hooks(module) && register_pin(module) && register_pin_buffer(module) &&
         register_arrow_column(module) && register_revoked(module) && register_box(module) && register_guards(module) &&
         register_find_boxes(module) && register_waiting(module) && register_shallow(module) &&
         register_shared(module) && register_atomic(module) && register_channel(module) && register_dict(module) && register_lock(module) &&
         register_lock_guard(module) && register_lock_view(module);
}

}  // namespace drust::bind
