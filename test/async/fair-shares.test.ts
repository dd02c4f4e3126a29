import fc from 'fast-check';
import { expect, test } from 'vitest';
import { FairShares, type Party } from '../../services/lib/async/fair-shares.ts';

const make = (name: string, served: number): Party => ({ name, served });

test('parties that all want more are served the same, up to the largest cost of each', () => {
  const costs = fc.array(fc.integer({ min: 1, max: 99 }), { minLength: 1, maxLength: 60 });
  fc.assert(
    fc.property(costs, fc.integer({ min: 2, max: 4 }), (list, count) => {
      const shares = new FairShares(make);
      const parties = Array.from({ length: count }, (_, i) => shares.of(`${i}`));
      for (const cost of list) {
        shares.serve(shares.next(() => true)!, cost);
        const served = parties.map((party) => party.served);
        expect(Math.max(...served) - Math.min(...served)).toBeLessThanOrEqual(Math.max(...list));
      }
    }),
  );
});

test('a party that was idle saves up no credit, and one that was served while alone owes nothing later', () => {
  const shares = new FairShares(make);
  const [busy, idle] = [shares.of('busy'), shares.of('idle')];
  for (let i = 0; i < 10; i++) shares.serve(busy, 5);
  shares.wakes(idle);
  expect([idle.served, busy.served]).toEqual([45, 50]);
  expect(shares.servedOf('new')).toBe(45);
});

test('where another one goes before the first in line, newcomers start beside that one', () => {
  const shares = new FairShares(make);
  const [passed, other] = [shares.of('passed'), shares.of('other')];
  for (let i = 0; i < 5; i++) shares.serve(other, 10, passed.served);
  expect(shares.servedOf('new')).toBe(0);
  expect(shares.next(() => true)).toBe(passed);
});

test('an idle party is forgotten when a new one would equal it, and not before', () => {
  const shares = new FairShares(make);
  const idle = (party: Party) => party.name === 'idle';
  shares.serve(shares.of('idle'), 10);
  shares.forget(idle);
  expect(shares.find('idle')?.served).toBe(10);
  shares.passTo(10);
  shares.forget(idle);
  expect(shares.find('idle')).toBeUndefined();
});
