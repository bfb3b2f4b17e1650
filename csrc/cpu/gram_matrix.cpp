#include "op_pool.h"
