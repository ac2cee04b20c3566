"""The cases of the losses that compare named layers of student and teacher."""
