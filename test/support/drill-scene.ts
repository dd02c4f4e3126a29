/** The scene of a drill without a system: its members are fake. */
import type { Vitals } from '../../bench/drills/fleet.ts';
import type { Scene } from '../../bench/drills/scene.ts';
import { RandomStream } from '../../bench/measure/arrivals.ts';
import type { Role } from '../../services/supervisor.ts';

export const BODY = { prompt: [1], max_tokens: 2, rag: { repo: 'shop', mode: 'compressed' } };
export const REFERENCE = { body: BODY, tokenIds: [1, 2], withoutContext: [3, 4], tookMs: 1 };

interface FakeSystem {
  readonly url?: string;
  readonly path?: string;
  readonly replays?: () => number;
  readonly running?: (role: Role) => number;
}

/**
 * A scene with two members of each role, which answer at once whatever is done to them.
 * @returns the scene, and the list of what the drill did.
 */
export function scene({ url = '', path = '', replays = () => 0, running = () => 1 }: FakeSystem) {
  const done: string[] = [];
  const fleet = {
    url,
    apiKey: 'honest',
    capacity: 64,
    tenants: ['honest', 'hostile'].map((name) => ({ name, apiKey: name })),
    of: (role: Role) => [0, 1].map((i) => ({ role, process: { name: `${role}-${i}` } })),
    vitals: async ({ role }: { role: Role }) => ({ running: running(role), stagedBytes: 0, rssBytes: 0 }) as Vitals,
    answers: async () => true,
    usable: async () => 2,
    replays: async () => replays(),
  };
  const mark = () => {
    done.push('marked');
    return () => done.push('mended');
  };
  const burst = async () => done.push('burst');
  const fake = { fleet, count: 2, seconds: 1, random: new RandomStream(1), references: [REFERENCE], path, mark, burst };
  return { scene: fake as unknown as Scene, done };
}
