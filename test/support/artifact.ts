/** An artifact of `bench index`, as small as one can be. */
import type { IndexResult } from '../../bench/indexing/measure.ts';
import type { Artifact } from '../../bench/report/artifact.ts';

export const ARTIFACT: Artifact<IndexResult> = {
  format: 1,
  bench: 'index',
  command: 'llavacode bench index',
  startedAt: '2025-01-02T03:04:05.000Z',
  seconds: 4.2,
  environment: {
    cpu: 'some cpu',
    cores: 2,
    memoryGiB: 8,
    system: 'linux',
    versions: { node: '20.0.0', 'onnxruntime-node': '1.0.0' },
    commit: 'abc',
    loadAverage: 0.1,
  },
  models: [{ name: 'm', precision: 'int4', fingerprint: 'f'.repeat(64) }],
  settings: {},
  definitions: { ttft: 'time to first token' },
  result: { runs: [{ model: 'm', run: 'first', chunks: 40, embedded: 40, seconds: 2 }] },
};
