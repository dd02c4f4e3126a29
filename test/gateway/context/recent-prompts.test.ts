import fc from 'fast-check';
import { expect, test } from 'vitest';
import { RecentPrompts } from '../../../services/gateway/context/recent-prompts.ts';

const file = (name: string) => Array.from({ length: 30 }, (_, i) => `${name}_${i} = compute(${i})\n`).join('');

test('prompts that go on where the last one was are one series, and another file begins another one', () => {
  const recent = new RecentPrompts();
  const of = (prompt: string) => recent.seriesOf('t', 'c', prompt);
  const a = of(file('a'));
  expect(a).toBeDefined();
  expect(of(`${file('a')}x`)).toBe(a);
  expect(of(`${file('a').slice(0, -40)}y`)).toBe(a);
  const b = of(file('b'));
  expect(b).not.toBe(a);
  expect(of(`${file('a')}xy`)).toBe(a); // back in the first file
  expect(of('short')).toBeUndefined();
});

test('a series has the same name at another gateway, and another one for what shares less than half with it', () => {
  const first = new RecentPrompts().seriesOf('t', 'c', `${file('a')}x`);
  expect(new RecentPrompts().seriesOf('t', 'c', `${file('a')}xyz`)).toBe(first);
  const recent = new RecentPrompts();
  const start = file('a').slice(0, 300);
  recent.seriesOf('t', 'c', start + file('b'));
  const [b, c] = [recent.seriesOf('t', 'c', start + file('b')), recent.seriesOf('t', 'd', start + file('c'))];
  expect(b).toBe(c); // the name is that of the beginning; the client is a part of the key that is made of it
});

test('clients and tenants have prompts of their own', () => {
  const recent = new RecentPrompts();
  const longer = (name: string) => `${file('a').slice(0, 130)}${file(name)}`;
  for (const [tenant, client] of [
    ['t', 'c'],
    ['t', 'd'],
    ['u', 'c'],
  ] as const)
    recent.seriesOf(tenant, client, longer('x'));
  // Only the client that has sent the prompt finds it by a beginning that differs within the first characters.
  const moved = `# ${longer('x')}`;
  const series = recent.seriesOf('t', 'c', moved);
  expect(recent.seriesOf('t', 'c', `${moved}y`)).toBe(series);
});

test('any prompts are taken, and the memory is bounded and shared fairly', () => {
  const recent = new RecentPrompts(100_000);
  fc.assert(
    fc.property(fc.string({ maxLength: 2_000 }), fc.nat(50), (prompt, client) => {
      const first = recent.seriesOf('many', `${client}`, prompt);
      expect(recent.seriesOf('many', `${client}`, prompt)).toBe(first);
    }),
  );
  const kept = recent.seriesOf('few', 'c', `${file('a')}1`);
  for (let i = 0; i < 1_000; i++) recent.seriesOf('many', `${i}`, file(`b${i}`));
  expect(recent.seriesOf('few', 'c', `${file('a')}12`)).toBe(kept);
});
