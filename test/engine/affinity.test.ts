/** A pinned process keeps to its cores with all threads, including those that the runtime starts later. */
import { mkdtemp, readdir, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { OrtSession } from '../../services/lib/engine/ort.ts';
import { pinProcess } from '../../services/lib/engine/ort-affinity.ts';
import { Checkpoint } from '../../services/lib/model/checkpoint/checkpoint.ts';
import { type DecoderSpec, readSpec } from '../../services/lib/model/checkpoint/spec.ts';
import { buildDecoder } from '../../services/lib/model/graph/decoder.ts';
import { writeModel } from '../../services/lib/model/graph/onnx.ts';
import { allowedCpus } from '../../services/lib/process/cpus.ts';

const CHECKPOINT = join(import.meta.dirname, '../goldens/qwen2-tied');
let dir: string;
beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), 'llavacode-affinity-'));
});
afterAll(() => rm(dir, { recursive: true, force: true }));

async function coresOfThreads(): Promise<string[]> {
  const threads = await readdir('/proc/self/task');
  return Promise.all(
    threads.map(async (thread) => {
      const status = await readFile(`/proc/self/task/${thread}/status`, 'utf8');
      return /^Cpus_allowed_list:\s*(\S+)$/m.exec(status)?.[1] ?? '';
    }),
  );
}

test.runIf(process.platform === 'linux')('threads made before and after pinning are pinned', async () => {
  const core = allowedCpus()[0]!;
  pinProcess([core]);
  const spec = (await readSpec(CHECKPOINT)) as DecoderSpec;
  const checkpoint = await Checkpoint.open(CHECKPOINT);
  await writeModel(buildDecoder(spec, checkpoint, { layers: 'fp32', vocabulary: 'fp32', maxPositions: 64 }), dir);
  const before = (await coresOfThreads()).length;
  const session = await OrtSession.load(join(dir, 'model.onnx'), { threads: 3 });
  const after = await coresOfThreads();
  session.dispose();
  expect(after.length).toBeGreaterThan(before);
  expect(new Set(after)).toEqual(new Set([String(core)]));
});

test.runIf(process.platform === 'linux')('cores that do not exist are refused', () => {
  expect(() => pinProcess([4000])).toThrow(expect.objectContaining({ code: 'config_invalid' }));
});
