-- Tiled keeps its catalog in the first database and tables of numbers in this one.
CREATE DATABASE tables OWNER tiled;
