/** Opening devices and what can be done with their memory. The device is the tests' software GPU. */
import { afterAll, beforeAll, expect, onTestFinished, test, vi } from 'vitest';
import { type Accelerator, CPU, openDevice } from '../../services/lib/engine/device.ts';
import { OrtSession, OrtValue } from '../../services/lib/engine/ort.ts';
import { assertOk, runtime } from '../../services/lib/engine/ort-api.ts';
import * as provider from '../../services/lib/engine/provider.ts';
import { Graph } from '../../services/lib/model/graph/graph.ts';
import { useVulkan } from '../support/vulkan.ts';

const COMPILING_MS = 120_000;

let device: Accelerator;
beforeAll(async () => {
  await useVulkan();
  device = (await openDevice({ provider: 'webgpu' })) as Accelerator;
}, COMPILING_MS);
afterAll(() => device.dispose());

const floats = (values: readonly number[]) => {
  const data = new Float32Array(new ArrayBuffer(values.length * 4));
  data.set(values);
  return new OrtValue({ type: 'float32', dims: [values.length], data });
};

test('a device is opened once, and closed when its last holder is done', async () => {
  const second = await openDevice({ provider: 'webgpu', deviceId: 0 });
  expect(second).toBe(device);
  await second.dispose();
  const tensor = await device.tensor('float32', [2]); // the first holder still has it
  tensor.dispose();
  await device.dispose();
  const [again, same] = await Promise.all([openDevice({ provider: 'webgpu' }), openDevice({ provider: 'webgpu' })]);
  expect(again).not.toBe(device);
  expect(same).toBe(again);
  await same.dispose();
  device = again as Accelerator;
});

test('the session that proves that a device starts must not compute on the CPU instead', async () => {
  const { api } = runtime();
  const entries = vi.spyOn(api, 'addSessionConfigEntry');
  onTestFinished(entries.mockRestore);
  const other = await openDevice({ provider: 'webgpu', providerLibrary: 'another key' });
  await other.dispose();
  expect(entries.mock.calls.map(([, key, value]) => [key, value])).toContainEqual([
    'session.disable_cpu_ep_fallback',
    '1',
  ]);
});

test('a device without page-locked memory of its own keeps no allocator when it cannot be opened', async () => {
  const { api } = runtime();
  const calls = { made: 0, freed: 0 };
  const { createAllocator, releaseAllocator } = api;
  const made = vi.spyOn(api, 'createAllocator').mockImplementation((...args) => {
    if (++calls.made > 1) throw new Error('no page-locked memory');
    return createAllocator(...args);
  });
  const freed = vi.spyOn(api, 'releaseAllocator').mockImplementation((...args) => {
    calls.freed++;
    return releaseAllocator(...args);
  });
  onTestFinished(() => {
    made.mockRestore();
    freed.mockRestore();
  });
  const pinned = vi.spyOn(provider, 'openProvider').mockImplementation(() => ({
    name: 'a device',
    kernels: 'webgpu',
    pinnedMemory: runtime().cpu,
    append: (options) => assertOk(api, api.appendProvider(options, 'WebGPU', [], [], 0)),
    close: () => {},
    remedy: () => 'find another',
  }));
  onTestFinished(() => pinned.mockRestore());
  await expect(openDevice({ provider: 'webgpu', deviceId: 7 })).rejects.toMatchObject({
    code: 'provider_unavailable',
    message: expect.stringContaining('no page-locked memory'),
  });
  expect(calls).toEqual({ made: 2, freed: 1 });
});

test('the CPU is a device that needs neither opening nor closing', async () => {
  expect(await openDevice({ provider: 'cpu' })).toBe(CPU);
  await CPU.dispose();
});

test('tensors are copied to the device, within it and back, and their bytes are counted', async () => {
  const values = [3, 1, 4, 1, 5, 9];
  const [from, back, start] = [floats(values), floats(values.map(() => 0)), floats([0, 0])];
  const [a, b] = [await device.tensor('float32', [6]), await device.tensor('float32', [6])];
  expect(device.bytes).toBe(48);
  await device.copy([from], [a]);
  await device.copy([a], [b]);
  await device.copy([b], [back]);
  expect(Array.from(back.tensor.data as Float32Array)).toEqual(values);
  const head = b.head([2]);
  await device.copy([head], [start]);
  expect(Array.from(start.tensor.data as Float32Array)).toEqual([3, 1]);
  expect(() => a.head([7])).toThrow(RangeError);
  for (const value of [head, a, b, a, from, back, start]) value.dispose(); // twice does no harm
  expect(device.bytes).toBe(0);
});

test('each run reads what its inputs in memory of the host then hold, and writes its output in place', async () => {
  const graph = new Graph();
  const x = graph.input('x', 'float32', [2]);
  const y = graph.input('y', 'float32', [2]);
  graph.output(graph.node('Add', 'sum', [x, y]), 'float32', [2]);
  const session = await OrtSession.build(graph, { device, threads: 1 });
  const binding = session.bind();
  const total = await device.tensor('float32', [2]);
  const [step, read] = [floats([0, 0]), floats([0, 0])];
  try {
    await device.copy([step], [total]);
    binding.input('x', total).input('y', step).output('sum', total);
    for (const value of [1, 10, 100]) {
      (step.tensor.data as Float32Array).fill(value);
      await binding.run();
    }
    await device.copy([total], [read]);
    expect(Array.from(read.tensor.data as Float32Array)).toEqual([111, 111]);
  } finally {
    binding.dispose();
    session.dispose();
    for (const value of [total, step, read]) value.dispose();
  }
});

test('memory of the host that the device offers holds what is written there', async () => {
  const value = device.hostTensor('int32', [3]);
  const empty = device.hostTensor('float16', [0]);
  (value.tensor.data as Int32Array).set([1, 2, 3]);
  const tensor = await device.tensor('int32', [3]);
  const back = device.hostTensor('int32', [3]);
  await device.copy([value], [tensor]);
  await device.copy([tensor], [back]);
  expect(Array.from(back.tensor.data as Int32Array)).toEqual([1, 2, 3]);
  expect(empty.tensor.data).toHaveLength(0);
  for (const made of [value, empty, tensor, back]) made.dispose();
});

test('a run whose caller has gone before its turn does not happen', async () => {
  let release = () => {};
  const busy = device.lane.run(() => new Promise<void>((resolve) => (release = resolve)));
  const controller = new AbortController();
  const [from, to] = [floats([1]), await Promise.resolve(floats([0]))];
  const copied = device.copy([from], [to], controller.signal);
  controller.abort(new Error('gone'));
  await expect(copied).rejects.toThrow('gone');
  release();
  await busy;
  for (const value of [from, to]) value.dispose();
});
