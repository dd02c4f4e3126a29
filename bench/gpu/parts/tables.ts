/** The paper's rows for every model on the device: the requests of `bench tables`, against systems on this provider. */
import { Deferred } from '../../../services/lib/async/deferred.ts';
import { prepareModel, withSystems } from '../../harness/systems.ts';
import { defaultsOf, SYSTEM_OPTIONS } from '../../options.ts';
import { BOTH } from '../../system/deployment.ts';
import { measureTables } from '../../tables/measure.ts';
import { pathOf } from '../bundles.ts';
import type { PartContext } from './context.ts';

export async function measurePaperTables(context: PartContext): Promise<void> {
  const { signal } = context;
  const over = new Deferred<never>();
  const onAbort = () => over.reject(signal.reason);
  signal.addEventListener('abort', onAbort, { once: true });
  try {
    // Systems that are starting when the time is over are stopped as soon as they have started.
    const measured = measureModels(context);
    measured.catch(() => {});
    await Promise.race([measured, over.promise]);
  } finally {
    signal.removeEventListener('abort', onAbort);
  }
}

async function measureModels(context: PartContext): Promise<void> {
  const { options, sizes, bundles, signal, endMs, addPair } = context;
  const { provider, model: models } = options;
  for (const [i, model] of models.entries()) {
    const precision = options.precision[0]!;
    const modelEndMs = performance.now() + (endMs - performance.now()) / (models.length - i);
    const onProgress = (text: string) => {
      signal.throwIfAborted(); // between two cells; the systems are then stopped in order
      context.onProgress(text);
    };
    onProgress(`tables: waiting for the bundle of ${model}`);
    await bundles.get(model, precision, signal);
    const settings = { ...defaultsOf(SYSTEM_OPTIONS), ...options, models: [pathOf(model)], precision };
    onProgress(`tables: indexing with ${model}`);
    const ready = await prepareModel(pathOf(model), settings);
    onProgress(`tables: starting both modes with ${model}`);
    const plan = { deployments: BOTH, pinning: 'shared', slots: 2, workers: { provider } } as const;
    await withSystems(settings, ready, plan, (systems) =>
      measureTables({
        model: ready.model.name,
        systems: systems.map(({ url, deployment }) => ({ url, mode: deployment!.mode })),
        prompts: ready.prompts,
        rounds: sizes.rounds,
        budgetMs: Math.max(0, modelEndMs - performance.now()),
        timeoutMs: settings.timeoutMs,
        seed: settings.seed,
        onProgress,
        onPair: addPair,
      }),
    );
  }
}
