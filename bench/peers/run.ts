/** Runs `bench peers`: our deployments are started, and the peers run already. */
import { run } from '../harness/run.ts';
import { prepareModel, withSystems } from '../harness/systems.ts';
import { onlyModel } from '../options.ts';
import type { Artifact } from '../report/artifact.ts';
import { COLOCATED, DISAGGREGATED } from '../system/deployment.ts';
import type { PeersOptions } from './command.ts';
import { measureServers, type ServersResult } from './measure.ts';
import { SERVERS } from './servers-report.ts';

export async function runPeers(options: PeersOptions): Promise<Artifact<ServersResult>> {
  const prepared = await prepareModel(onlyModel(options), options);
  const { name: model, manifest } = prepared.model;
  const deployments = options.modes.map((mode) => (mode === 'colocated' ? COLOCATED : DISAGGREGATED));
  return run(SERVERS, options, { models: [prepared.model], settings: options }, (onProgress) => {
    onProgress('starting our own');
    return withSystems(options, prepared, { deployments }, async (systems) => {
      const ours = systems.map(({ name, url }) => ({ name, url, ours: true }));
      const others = options.peers.map((peer) => ({ ...peer, ours: false }));
      const vocabulary = manifest.llm.spec.vocab;
      return { model, ...(await measureServers([...ours, ...others], vocabulary, options, onProgress)) };
    });
  });
}
