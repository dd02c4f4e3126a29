/** An artifact of `bench index`, as small as one can be. */
import type { IndexResult } from '../../bench/indexing/result.ts';
import type { Artifact } from '../../bench/report/artifact.ts';

const ENCODER = { name: 'e', layers: 28, randomWeights: true };

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
  result: {
    encoders: [
      {
        model: 'm',
        encoder: ENCODER,
        chunks: 40,
        tokens: 4000,
        repositoryChunks: 80,
        cells: [
          { weights: 'int8', batching: 'by length', workers: 1, threads: 2, seconds: [2, 1, 4], cpuSeconds: [3, 2, 5] },
          { weights: 'fp32', batching: 'by length', workers: 1, threads: 2, seconds: [4, 4, 4], cpuSeconds: [8, 8, 8] },
        ],
      },
    ],
    runs: [{ model: 'm', encoder: ENCODER, run: 'first', chunks: 40, embedded: 40, seconds: 2 }],
  },
};
