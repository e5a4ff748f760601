"""Examples that a model goes on from, with the words that give a copy of them away."""

from __future__ import annotations

__all__ = ["DESCRIBE", "LIST", "LISTED", "QUESTIONS", "REWORD", "SHOWN"]

from grun.jobs.inputs.expansion.names import plain

QUESTIONS = """Questions and tasks about one subject, each with the name of the subject in it.

Penguins:
- How long can penguins stay under water?
- Where do most penguins raise their chicks?
- Name three countries in which wild penguins live.
- Why do penguins huddle together in winter?
- Explain how penguins keep their feathers dry.

Marie Curie:
- Which two elements did Marie Curie discover?
- In which city was Marie Curie born?
- What did Marie Curie do during the First World War?
- Who shared the first Nobel Prize with Marie Curie?
- Describe the laboratory in which Marie Curie worked.

{name}:
-"""
DESCRIBE = """The first sentences of articles in an encyclopedia.

Penguins: Penguins are flightless sea birds that live almost only in the southern half of the world.
Marie Curie: Marie Curie was a Polish physicist and chemist who discovered the elements polonium and radium.
Moby-Dick: Moby-Dick is a novel by Herman Melville about a captain who hunts a white whale.
Chess: Chess is a board game for two players with sixteen pieces each.
{name}: {name}"""
LIST = """Other things of the same kind, by name.

Penguins: albatrosses; puffins; seals; gulls; ostriches; cormorants;
Marie Curie: Lise Meitner; Ernest Rutherford; Niels Bohr; Dmitri Mendeleev; Louis Pasteur;
Moby-Dick: Robinson Crusoe; Treasure Island; The Old Man and the Sea; Great Expectations;
Chess: draughts; backgammon; go; bridge; dominoes; poker;
{name}:"""
REWORD = """Every question, and then the same question in other words.

Question: How long can penguins stay under water?
In other words: For how many minutes can penguins dive?

Question: In which city was Marie Curie born?
In other words: What is the birthplace of Marie Curie?

Question: Explain how chess is won.
In other words: Tell me what it takes to win at chess.

Question: {text}
In other words:"""
# Words of these examples, and names in them, that a text on another subject would have from a copy only.
SHOWN = frozenset({"penguin", "penguins", "curie", "moby", "dick", "melville", "chess", "polonium", "radium"})
LISTED = frozenset(
    plain(one) for line in LIST.split("\n")[2:-1] for one in line.partition(":")[2].split(";") if one.strip()
)
