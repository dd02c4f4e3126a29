/** A session without a device, and the errors of a runtime that is missing or another one. */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, expect, test, vi } from 'vitest';
import { OrtSession } from '../../services/lib/engine/ort.ts';
import { libraryPath, RUNTIME_VERSION } from '../../services/lib/engine/ort-api.ts';
import { saturates } from '../../services/lib/engine/ort-settings.ts';
import { Graph } from '../../services/lib/model/graph/graph.ts';
import { writeModel } from '../../services/lib/model/graph/onnx.ts';

let dir: string;
let path: string;
beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), 'llavacode-provider-'));
  const graph = new Graph();
  const input = graph.input('x', 'float32', [2]);
  graph.output(graph.node('Add', 'sum', [input, input]), 'float32', [2]);
  await writeModel(graph, dir);
  path = join(dir, 'model.onnx');
});
afterAll(() => rm(dir, { recursive: true, force: true }));
afterEach(() => {
  vi.doUnmock('koffi');
  vi.resetModules();
});

const doubled = async (session: OrtSession) => {
  const { sum } = await session.run({ x: { type: 'float32', dims: [2], data: Float32Array.of(1, 2) } });
  session.dispose();
  return Array.from(sum!.data as Float32Array);
};

test('a session computes on the CPU when no device is given', async () => {
  expect(await doubled(await OrtSession.load(path, { threads: 1 }))).toEqual([2, 4]);
});

/** Imports the modules again, with a koffi that is changed. */
async function runtimeWith(differences: object): Promise<typeof import('../../services/lib/engine/ort-api.ts')> {
  vi.resetModules();
  vi.doMock('koffi', async (original) => {
    const { default: koffi } = await original<{ default: object }>();
    return { default: { ...koffi, ...differences } };
  });
  return import('../../services/lib/engine/ort-api.ts');
}

test('a library of another version is refused before any of its functions is called', async () => {
  const { default: koffi } = await import('koffi');
  let version: unknown;
  const decode = (...args: Parameters<typeof koffi.decode>) => {
    const decoded = koffi.decode(...args);
    // The second value that is decoded is the function that returns the version.
    if (typeof decoded !== 'function' || version !== undefined) return decoded;
    version = decoded();
    return () => '1.2.3';
  };
  const config = () => {}; // refused once a library is loaded
  const { runtime } = await runtimeWith({ decode, config });
  expect(() => runtime()).toThrow(
    expect.objectContaining({
      code: 'runtime_unsupported',
      message: `ONNX Runtime is 1.2.3, this build needs ${RUNTIME_VERSION}: reinstall onnxruntime-node`,
    }),
  );
  expect(version).toBe(RUNTIME_VERSION);
});

test('a platform without a library is refused with those that have one', () => {
  vi.spyOn(process, 'platform', 'get').mockReturnValue('sunos');
  expect(() => libraryPath()).toThrow(
    expect.objectContaining({ code: 'runtime_unsupported', message: expect.stringMatching(/sunos.*linux-x64/) }),
  );
  vi.restoreAllMocks();
});

test.each([
  ['an EPYC of 2019', 'flags\t\t: fpu sse4_1 avx2 bmi2', true],
  ['an EPYC of 2022', 'flags\t\t: fpu avx2 avx512f avx512_vnni', false],
  ['a Core of 2021', 'flags\t\t: fpu avx2 avx_vnni', false],
  ['an ARM, where sums have 32 bits', 'Features\t: fp asimd asimddp', false],
  ['an unknown CPU', '', false],
])('it is known of %s whether sums of 8-bit products saturate', (_, cpuinfo, expected) => {
  expect(saturates(cpuinfo)).toBe(expected);
});
