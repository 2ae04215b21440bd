#include "../ATen.h"
