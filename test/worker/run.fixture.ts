/** A worker process with a service that always refuses, started by run.test.ts. */
import { readConfig } from '../../services/lib/process/config.ts';
import { ServingError } from '../../services/lib/process/errors.ts';
import { metrics } from '../../services/lib/process/metrics.ts';
import { mount, streaming, unary } from '../../services/lib/rpc/server.ts';
import { runWorker } from '../../services/lib/worker/run.ts';
import { WORKER_SETTINGS } from '../../services/lib/worker/settings.ts';

const refuse = (message: string): never => {
  throw new ServingError('saturated', message);
};

let lose: (reason: ServingError) => void;
const lost = new Promise<ServingError>((resolve) => {
  lose = resolve;
});
// The parent says that the device is lost.
process.once('message', () => lose(new ServingError('runtime_failed', 'the test GPU failed twice')));

await runWorker({
  name: 'prefill',
  roles: ['decode'],
  config: readConfig(WORKER_SETTINGS, { flags: { port: '0' }, env: {}, file: {}, known: WORKER_SETTINGS, rules: [] }),
  build: async ({ log, life, address }) => {
    life.onStop('own step', () => log.info('own step'));
    const describe = unary(async () => refuse(`${address()}, draining: ${life.draining.aborted}`));
    // biome-ignore lint/correctness/useYield: it refuses
    const decode = streaming(async function* () {
      refuse('decode');
    });
    return {
      mounts: [mount.decode({ Decode: decode, Describe: describe })],
      modelName: 'a-model',
      lost,
      observe: () => metrics.stagedAge.set(42),
    };
  },
});
