/** Runs `bench fairness`. It ends with exit code 1 if a mix was not fair, or a request of an honest tenant failed. */
import { resolve } from 'node:path';
import type { OnProgress } from '../harness/run.ts';
import { run } from '../harness/run.ts';
import { assertNoUrl, withSystems } from '../harness/systems.ts';
import type { Attack } from '../hostile/attack.ts';
import { FLOOD, LEAVING, LONGEST_PROMPTS, manyChoices, PIPELINING, unread } from '../hostile/attacks.ts';
import { onlyModel } from '../options.ts';
import type { Artifact } from '../report/artifact.ts';
import { DISAGGREGATED } from '../system/deployment.ts';
import { type BenchModel, openModel } from '../system/model.ts';
import { writeKeys } from '../system/tenants.ts';
import type { FairnessOptions } from './command.ts';
import { type MixResult, makeTenants, measureMix, untilIdle } from './measure.ts';
import { FAIRNESS, type FairnessResult } from './report.ts';

/** Output tokens of each of many choices: long beside those of honest tenants, and several fit into a window. */
const LONG_OUTPUT = 160;
/** Connections of the client that does not read; each has as many choices as a worker has slots by default. */
const UNREAD_CONNECTIONS = 3;

const ATTACKS: readonly Attack[] = [
  manyChoices(64, LONG_OUTPUT),
  FLOOD,
  LONGEST_PROMPTS,
  unread(UNREAD_CONNECTIONS),
  LEAVING,
  PIPELINING,
];

export async function runFairness(options: FairnessOptions): Promise<Artifact<FairnessResult>> {
  assertNoUrl(options, 'fairness', 'a system whose tenants it chooses');
  const model = await openModel(onlyModel(options), options);
  const plan = { models: [model], settings: options };
  const artifact = await run(FAIRNESS, options, plan, async (onProgress) => {
    const mixes: MixResult[] = [];
    for (const weight of options.weights) mixes.push(...(await measureWeight(model, weight, options, onProgress)));
    return { model: model.name, mixes };
  });
  if (artifact.result.mixes.some(({ broken }) => broken !== '')) process.exitCode = 1;
  return artifact;
}

/** Measures all mixes on a system in which the first busy tenant has a weight of its own. */
async function measureWeight(
  model: BenchModel,
  weight: number,
  options: FairnessOptions,
  onProgress: OnProgress,
): Promise<MixResult[]> {
  const { only, data } = options;
  const wanted = ({ name }: Attack) => only.length === 0 || only.some((word) => name.includes(word));
  // Each mix has tenants of its own: nobody enters it with the debts of another mix.
  const mixes = [undefined, ...ATTACKS.filter(wanted)].map((attack, i) => ({ attack, tenants: makeTenants(i) }));
  const all = mixes.flatMap(({ tenants: { busy, typing, hostile } }) => [...busy, typing, hostile]);
  const gateway = {
    apiKeysFile: await writeKeys(resolve(data), all),
    tenantWeights: mixes.map(({ tenants }) => `${tenants.busy[0].name}=${weight}`).join(','),
  };
  const plan = { deployments: [DISAGGREGATED], pinning: 'shared', gateway } as const;
  return withSystems(options, { model, store: `lmdb:${resolve(data, 'no-index')}` }, plan, async ([system]) => {
    const results: MixResult[] = [];
    for (const { attack, tenants } of mixes) {
      onProgress(`weight ${weight}: ${attack?.name ?? 'nobody attacks'}`);
      results.push(await measureMix(system!.url, tenants, weight, attack, options));
      await untilIdle({ url: system!.url, apiKey: tenants.typing.apiKey });
    }
    return results;
  });
}
