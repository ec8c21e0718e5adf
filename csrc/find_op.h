// An op by its name, for C++ that calls it through the dispatcher. To find it takes longer than to call it: keep it.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>

namespace fastdhm {

template <class Op>
c10::TypedOperatorHandle<Op> find_op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Op>();
}

}  // namespace fastdhm
