"""The interpreter of machine code and the model give the known answers for small kernels (synthetic.cu)."""

import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest

from benchmarks.gpu_model import model, transactions
from benchmarks.gpu_model.kernels import Cubin, Execution, compile_cubin, cuobjdump, nvcc, process_memory
from benchmarks.gpu_model.machine import Launch, Machine
from benchmarks.gpu_model.operands import UnsupportedCode

pytestmark = pytest.mark.skipif(nvcc() is None or cuobjdump() is None, reason="no nvcc, or no cuobjdump")


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpu_model")
    return Cubin(compile_cubin(Path(__file__).parent / "synthetic.cu", folder)).kernels


def execute(kernel, *arguments, threads=32, blocks=1, cluster=1):
    """Run a kernel; arrays are passed by address, integers as 32 bits, floats as float32."""
    data = b""
    for value in arguments:
        code = "q" if isinstance(value, np.ndarray) else "f" if isinstance(value, float) else "i"
        data += bytes(-len(data) % struct.calcsize(code))
        data += struct.pack(code, value.ctypes.data if code == "q" else value)
    launch = Launch("synthetic", (blocks, 1, 1), (threads, 1, 1), 0, data, cluster)
    numbers = np.arange(blocks)
    machine = Machine(kernel.function, launch, numbers, process_memory(), kernel.shared_bytes)
    return Execution(launch, kernel, numbers, machine.run())


def accesses(execution, *opcodes):
    """The transactions of some kinds of memory instructions, summed."""
    found = [a for a in execution.record.accesses if a.instruction.opcode in opcodes]
    return sum(map(transactions.count, found), start=transactions.Transactions())


def aligned(count, dtype=np.float32):
    """Zeros at an address that is a multiple of 128 bytes."""
    memory = np.zeros(count * np.dtype(dtype).itemsize + 128, np.uint8)
    start = -memory.ctypes.data % 128
    return memory[start : start + count * np.dtype(dtype).itemsize].view(dtype)


def test_coalesced_packets_use_every_byte_once(kernels):
    source, target = aligned(4 * 64), aligned(4 * 64)
    source[:] = np.arange(4 * 64)
    execution = execute(kernels["copy_packets"], source, target, blocks=2)
    assert (target == source).all()
    loads = accesses(execution, "LDG")
    # Two warps; each reads 512 bytes: 16 sectors, in four passes.
    assert (loads.requests, loads.wavefronts, loads.sectors) == (2, 8, 32)
    counts = model.count(execution)
    assert counts.read_bytes == counts.written_bytes == 512


@pytest.mark.parametrize("stride, sectors, wavefronts", [(1, 4, 1), (2, 8, 2), (8, 32, 8), (32, 32, 8)])
def test_strided_reads_touch_more_sectors(kernels, stride, sectors, wavefronts):
    source, target = aligned(32 * 32), aligned(32)
    source[:] = np.arange(32 * 32)
    execution = execute(kernels["read_strided"], source, target, stride)
    assert (target == source[::stride][:32]).all()
    loads = accesses(execution, "LDG")
    assert (loads.sectors, loads.wavefronts) == (sectors, wavefronts)


@pytest.mark.parametrize("stride, wavefronts", [(0, 1), (1, 1), (2, 2), (16, 16), (32, 32), (33, 1)])
def test_bank_conflicts(kernels, stride, wavefronts):
    target = aligned(32)
    execution = execute(kernels["shared_strided"], target, stride)
    assert (target == np.arange(32) * stride).all()
    assert accesses(execution, "LDS").wavefronts == wavefronts


def test_busiest_sub_core_is_found(kernels):
    to = aligned(128)
    counts = model.count(execute(kernels["busy_warps"], to, 0.5, 2, 100, threads=128))
    idle = model.count(execute(kernels["busy_warps"], aligned(128), 0.5, 0, 100, threads=128))
    extra = counts.issue - idle.issue
    assert extra[0] == extra[1] >= 100 and (extra[2:] <= 2).all()
    assert counts.opcodes["FFMA"] == 200
    assert counts.imbalance > 1.5 and idle.imbalance == pytest.approx(1)


def test_divergent_paths_are_both_issued(kernels):
    start = np.arange(32, dtype=np.int32)
    to = start.copy()
    execution = execute(kernels["diverge"], to)
    expected = start.copy()
    for _ in range(10):
        expected[1::2] = expected[1::2] * 3 + 1
    with np.errstate(over="ignore"):
        for _ in range(20):
            expected[::2] = expected[::2] * 5 + 2
        expected = expected + expected.reshape(-1, 2)[:, ::-1].reshape(-1)
    assert (to == expected).all()
    assert execution.record.issued.sum() > 10 * 3 + 20 * 3  # a loop has a multiply-add, a comparison and a branch


def test_chain_of_loads_takes_their_latencies(kernels):
    following = np.roll(np.arange(64), -1)
    times = []
    for count in (10, 20):
        to = np.zeros(32, np.int64)
        execution = execute(kernels["chase"], following, to, count)
        assert (to == (np.arange(32) + count) % 64).all()
        times.append(model.count(execution).latency)
    assert times[1] - times[0] == pytest.approx(10 * model.LATENCY["global"], rel=0.1)


@pytest.mark.parametrize("full", [0, 1])
def test_reductions_count_full_sectors(kernels, full):
    to = aligned(32 * 8)
    counts = model.count(execute(kernels["reduce_packets"], to, full))
    if full:
        assert (to[:128].reshape(-1, 4) == [1, 2, 3, 4]).all()
        assert (counts.reductions.sectors, counts.reductions.full_sectors) == (16, 16)
    else:
        assert (to.reshape(-1, 8) == [1, 2, 3, 4, 0, 0, 0, 0]).all()
        assert (counts.reductions.sectors, counts.reductions.full_sectors) == (32, 0)


def test_matrix_instructions_of_ptx(kernels):
    generator = np.random.default_rng(0)
    a, b = (generator.standard_normal((rows, 16)).astype(np.float16) for rows in (16, 8))
    out = np.zeros((16, 8), np.float32)
    execution = execute(kernels["multiply"], a, b, out)
    filled = b.astype(np.float64)
    filled[7, 8:] = 0  # the copy of lane 15 writes zeros
    np.testing.assert_allclose(out, a.astype(np.float64) @ filled.T, rtol=1e-5, atol=1e-5)
    opcodes = {i.text.split()[0] for i in execution.kernel.function.instructions}
    assert {"HMMA.16816.F32", "LDSM.16.M88.4", "LDGDEPBAR", "LDGSTS.E.BYPASS.128"} <= opcodes


def test_functions_of_ptx(kernels):
    x = np.linspace(-3, 3, 32).astype(np.float32)
    to = np.zeros((4, 32), np.float32)
    execution = execute(kernels["functions"], x, to)
    np.testing.assert_allclose(to[0], np.exp2(x.astype(float)), rtol=1e-6)
    np.testing.assert_allclose(to[1], 1 / x.astype(float), rtol=1e-6)
    assert (to[2].view(np.uint32) % 2**13 == 0).all()
    np.testing.assert_allclose(to[2], x, rtol=2**-11)
    np.testing.assert_allclose(to[3], x.astype(float) / 3, rtol=1e-6)
    opcodes = {".".join((i.opcode, *i.modifiers)) for i in execution.kernel.function.instructions}
    assert {"MUFU.EX2", "MUFU.RCP"} <= opcodes


@pytest.mark.parametrize("cluster", [1, 2, 3])
def test_blocks_of_a_cluster_read_each_other(kernels, cluster):
    to = np.zeros((6, 32), np.int32)
    execution = execute(kernels["sum_cluster"], to, blocks=6, cluster=cluster)
    values = np.arange(6)[:, None] * 100 + np.arange(32)
    expected = values.reshape(-1, cluster, 32).sum(1).repeat(cluster, 0)
    expected[np.arange(6) % cluster == 1] *= -1
    assert (to == expected).all()
    opcodes = {instruction.opcode for instruction in execution.kernel.function.instructions}
    assert {"UCGABAR_ARV", "UCGABAR_WAIT"} <= opcodes
    loads = [access for access in execution.record.accesses if access.instruction.opcode == "LD"]
    assert sum(len(access.lanes) for access in loads) == 6 * 32 * cluster
    assert {access.space for access in loads} == {"shared"}
    machine_of = lambda blocks: Machine(  # noqa: E731
        kernels["sum_cluster"].function, Launch("x", (6, 1, 1), (32, 1, 1), 0, b"", 3), blocks, process_memory()
    )
    with pytest.raises(ValueError, match="blocks must be whole clusters of 3"):
        machine_of([1, 2, 3])


@pytest.mark.parametrize("cluster", [1, 3])
def test_blocks_of_a_cluster_write_to_each_other(kernels, cluster):
    to = np.zeros((6, 32), np.int32)
    execution = execute(kernels["write_next_block"], to, blocks=6, cluster=cluster)
    before = np.roll(np.arange(6).reshape(-1, cluster), 1, axis=1).reshape(-1)
    assert (to == before[:, None] * 100 + np.arange(32)).all()
    stores = [access for access in execution.record.accesses if access.instruction.opcode == "ST"]
    assert {access.space for access in stores} == {"shared"}


def test_invalid_access_is_reported(kernels):
    with pytest.raises(RuntimeError, match="outside the tensors"):
        launch = Launch("synthetic", (1, 1, 1), (32, 1, 1), 0, struct.pack("qqi", 4096 * 2, 4096 * 3, 1))
        kernel = kernels["read_strided"]
        Machine(kernel.function, launch, [0], process_memory()).run()


@pytest.mark.parametrize("threads", [32, 33, 70])
def test_last_warp_may_have_fewer_threads(kernels, threads):
    source, target = aligned(4 * 256), aligned(4 * 256)
    source[:] = np.arange(1, 4 * 256 + 1)
    execution = execute(kernels["copy_packets"], source, target, threads=threads, blocks=2)
    assert (target[: 8 * threads] == source[: 8 * threads]).all() and (target[8 * threads :] == 0).all()
    assert execution.launch.warps == -(-threads // 32)
    assert len(execution.record.accesses[0].lanes) == 2 * threads
    assert model.count(execution).imbalance == 1  # successive blocks begin at different sub-cores


def test_stacks_of_threads(kernels):
    to, count = np.zeros(40, np.int32), 6
    execution = execute(kernels["sum_stack"], to, count, threads=40)
    values = np.arange(40)[:, None] * np.arange(8)
    for i in range(count):
        values[:, i * 3 % 8] += values[:, (i * 5 + 1) % 8]
    assert (to == values[:, 0] + values[:, 7]).all()
    local = accesses(execution, "LDL", "STL")
    assert local.requests > 0 and local.wavefronts == local.requests  # words of neighboring lanes are neighbors
    assert model.count(execution).read_bytes == 0


def test_shuffles_in_groups_of_lanes(kernels):
    to = np.zeros(8, np.int32)
    execute(kernels["sum_groups"], to, 8, threads=64)
    assert (to == np.arange(64).reshape(8, 8).sum(1)).all()
    values, masks = np.arange(64, dtype=np.int32) % 3, np.zeros(64, np.uint32)
    execute(kernels["match_values"], values, masks, threads=64)
    lanes = np.arange(64).reshape(2, 32)
    expected = [sum(1 << lane % 32 for lane in lanes[i // 32] if values[lane] == values[i]) for i in range(64)]
    assert masks.tolist() == expected


def test_unsupported_code_is_named(kernels):
    machine = Machine(
        kernels["copy_packets"].function, Launch("x", (1, 1, 1), (32, 1, 1), 0, b""), [0], process_memory()
    )
    with pytest.raises(UnsupportedCode, match="constant bank 3"):
        machine.constants(3, np.zeros(32, np.int64))
    with pytest.raises(UnsupportedCode, match="special register SR_NTID"):
        machine.special_register("SR_NTID", np.arange(32))


def test_compile_cubin_reuses_only_what_is_up_to_date(tmp_path):
    """A header in any folder, the flags and the source decide; touching a file does not."""
    source, header = tmp_path / "kernel.cu", tmp_path / "elsewhere" / "value.inc"
    header.parent.mkdir()
    header.write_text("constexpr int kValue = 10;")
    source.write_text(f'#include "{header}"\n__global__ void kernel(int* to) {{ to[threadIdx.x] = kValue + EXTRA; }}\n')

    def compiled(extra):
        """The value that the compiled kernel writes, and when it was compiled."""
        path = compile_cubin(source, tmp_path / "out", (f"-DEXTRA={extra}",))
        (kernel,) = Cubin(path).kernels.values()
        to = aligned(32, np.int32)
        execute(kernel, to)
        return int(to[0]), path.stat().st_mtime_ns

    first = compiled(0)
    source.touch()
    assert first == compiled(0) and first[0] == 10
    assert compiled(2)[0] == 12
    header.write_text("constexpr int kValue = 20;")
    assert compiled(2)[0] == 22
    cubin = tmp_path / "out/kernel.cubin"
    source.write_text("this is not C++")
    with pytest.raises(subprocess.CalledProcessError):
        compiled(0)
    assert not cubin.with_suffix(".json").exists()
