/** The table of other systems' reports in bench/drills/README.md names drills that there are, and public threads. */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { DRILLS } from '../../../bench/drills/drills.ts';
import { HOSTILE_DRILLS } from '../../../bench/drills/hostile-tenants.ts';
import { ROLLOUT_DRILLS } from '../../../bench/drills/rollouts.ts';
import { PACKAGE_ROOT } from '../../../services/lib/process/package-root.ts';

const NAMES = [DRILLS, HOSTILE_DRILLS, ROLLOUT_DRILLS].flat().map(({ name }) => name);
const PEERS = [
  'ai-dynamo/dynamo',
  'ggml-org/llama.cpp',
  'kubernetes-sigs/gateway-api-inference-extension',
  'llm-d/llm-d',
  'sgl-project/sglang',
  'TabbyML/tabby',
  'vllm-project/vllm',
];

test('every report of another system stands beside a drill that there is, and links its thread', async () => {
  const page = await readFile(join(PACKAGE_ROOT, 'bench/drills/README.md'), 'utf8');
  const section = page.split('### Faults that others reported\n')[1]!.split('\n### ')[0]!;
  const rows = [...section.matchAll(/^\| `([^`]+)` \| (.+?) \| (.+?) \|$/gm)];
  expect(rows.map(([, drill]) => drill!).filter((drill) => !NAMES.includes(drill))).toEqual([]);
  const cited = rows.map(([, , links]) => [
    ...links!.matchAll(/\(https:\/\/github\.com\/([\w.-]+\/[\w.-]+)\/(?:issues|pull)\/\d+\)/g),
  ]);
  expect(cited.filter((links) => links.length === 0)).toEqual([]);
  expect([...new Set(cited.flat().map(([, repository]) => repository!))].sort()).toEqual([...PEERS].sort());
});
